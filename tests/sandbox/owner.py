"""Own a Sandbox until the end: for test_hosts.py, which ends it."""

from __future__ import annotations

import asyncio

from matrix.sandbox.execution import Execution
from matrix.sandbox.pool import Sandbox
from matrix.spec.services import SandboxEngine


async def main() -> None:
    sandbox = Sandbox(SandboxEngine(kind="sandbox", workers=2, timeout_s=100))
    await sandbox.start()
    running = asyncio.create_task(sandbox.execute(Execution(code="import time; time.sleep(100)")))
    await sandbox.execute(Execution(code="print(1)"))
    print("ready", flush=True)
    await running


if __name__ == "__main__":
    asyncio.run(main())
