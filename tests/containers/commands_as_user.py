"""Run commands in containers of the rootfs backend as whoever this process is, and print what came of them."""

from __future__ import annotations

import asyncio
import json
import sys

from matrix.containers.pool import ContainerPool
from matrix.spec.services import ContainerEngine

COMMANDS = {
    "who": "id -u; stat -c %u /etc/motd",
    "writes": "echo changed > /etc/motd && cat /etc/motd",
    "again": "cat /etc/motd",
    "capabilities": "while read name value; do [ $name = CapEff: ] && echo $value; done < /proc/self/status",
    "network": "echo x > /dev/tcp/127.0.0.1/22",
    "memory": "x=a; while :; do x=$x$x; done",
}


async def main() -> None:
    image, archive = sys.argv[1:]
    images = {"folder": image, "archive": archive, "here": "host"}
    pool = ContainerPool(ContainerEngine(kind="container", images=images, memory_mb=128, processes=32))
    await pool.start()
    told: dict[str, dict[str, object]] = {}
    for name in images:
        token = await pool.acquire(name, 20)
        told[name] = {}
        for key, command in COMMANDS.items():
            ended = await pool.execute(token, command, timeout_s=20)
            told[name][key] = [ended.exit_code, ended.output.decode(errors="replace")]
        await pool.release(token)
    await pool.close()
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    asyncio.run(main())
