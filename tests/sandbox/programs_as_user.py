"""Run a Sandbox without cgroups as whoever this process is, and print what came of some programs: for test_hosts.py."""

from __future__ import annotations

import asyncio
import json
import sys

from matrix.sandbox.execution import Execution
from matrix.sandbox.pool import Sandbox
from matrix.spec.services import SandboxEngine

PROGRAMS = {
    "plain": "import os; print(1 + 1, os.getuid())",
    "network": "import socket; socket.create_connection(('1.1.1.1', 53), 2)",
    "processes": "import os; print(sorted(int(one) for one in os.listdir('/proc') if one.isdigit()))",
    "memory": "x = []\nwhile True: x.append(bytearray(10 << 20))",
    "memory of many": (
        "import os, time\nfor _ in range(12):\n    if os.fork() == 0:\n        x = bytearray(30 << 20); time.sleep(5); os._exit(0)\n"
        "time.sleep(5)"
    ),
    "unseen memory": "import os; os.memfd_create('x')",
    "forks": "import os\nn = 0\ntry:\n    while os.fork(): n += 1\n    __import__('time').sleep(2)\nexcept OSError: print(n < 32)",
    "writes": "open('/usr/x', 'w')",
    "again": "print('well')",
}


async def main() -> None:
    engine = SandboxEngine(kind="sandbox", workers=1, memory_mb=128, processes=32, timeout_s=20)
    sandbox = Sandbox(engine)
    await sandbox.start()
    told = {}
    for name, code in PROGRAMS.items():
        told[name] = (await sandbox.execute(Execution(code=code))).model_dump()
    judged = Execution(code="def f(x): return x + 1", test="assert f(1) == 2")
    told["judged"] = (await sandbox.execute(judged)).model_dump()
    await sandbox.close()
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    asyncio.run(main())
