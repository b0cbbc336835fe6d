"""A process that owns a Sandbox with a program in it, until somebody ends it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

from matrix.sandbox.execution import Execution
from matrix.sandbox.pool import Sandbox
from matrix.spec.services import SandboxEngine
from tests.checkout import ROOT


def start_owner() -> subprocess.Popen[str]:
    """Start one; returns when its program runs."""
    owner = subprocess.Popen(
        [sys.executable, "-m", "tests.sandbox.owner"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert owner.stdout is not None
    with owner.stdout:
        assert owner.stdout.readline() == "ready\n"
    return owner


async def main() -> None:
    sandbox = Sandbox(SandboxEngine(kind="sandbox", workers=2, timeout_s=100))
    await sandbox.start()
    running = asyncio.create_task(sandbox.execute(Execution(code="import time; time.sleep(100)")))
    await sandbox.execute(Execution(code="print(1)"))
    print("ready", flush=True)
    await running


if __name__ == "__main__":
    asyncio.run(main())
