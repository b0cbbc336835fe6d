"""The pool of workers: who gets one, what ends with it, and programs that behave as in an interpreter of their own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from matrix.sandbox.execution import Execution
from matrix.sandbox.pool import RefusedError, Sandbox, SandboxBusyError
from matrix.spec.services import SandboxEngine

pytestmark = [pytest.mark.asyncio(loop_scope="module")]
ENGINE = SandboxEngine(kind="sandbox", workers=1, timeout_s=5, max_timeout_s=9, max_queue=1)


@pytest_asyncio.fixture(loop_scope="module")
async def sandbox() -> AsyncIterator[Sandbox]:
    box = Sandbox(ENGINE)
    await box.start()
    yield box
    await box.close()


PROGRAMS = [
    "print(input())",
    "import sys; sys.exit(3)",
    "import sys; sys.exit('bad')",
    "raise KeyboardInterrupt",
    "1 / 0",
    "def f(:",
    "import atexit; atexit.register(print, 'end')",
    "import threading, time; threading.Thread(target=lambda: (time.sleep(0.1), print('late'))).start(); print('now')",
    "print(__builtins__.len('ab'), __name__)",
    "import pickle, dataclasses\n@dataclasses.dataclass\nclass A:\n    x: int\nprint(pickle.loads(pickle.dumps(A(1))))",
    "import asyncio\nasync def f(): print('in')\nif __name__ == '__main__': asyncio.run(f())",
    "import subprocess; print(subprocess.check_output(['echo', 'hi']))",
    "import multiprocessing as m\nif __name__ == '__main__':\n    with m.Pool(2) as p: print(p.map(abs, [-1, -2]))",
]


async def test_a_program_ends_as_in_an_interpreter_of_its_own(sandbox: Sandbox, tmp_path: Path) -> None:
    for code in PROGRAMS:
        (tmp_path / "main.py").write_text(code)
        bare = subprocess.run(
            [sys.executable, "main.py"], cwd=tmp_path, input="line\n", capture_output=True, text=True, check=False
        )
        executed = await sandbox.execute(Execution(code=code, stdin="line\n"))
        ended = executed.exit_code if executed.signal is None else -signal.Signals[executed.signal]
        assert (code, ended, executed.stdout) == (code, bare.returncode, bare.stdout)
        assert executed.stderr.splitlines()[-1:] == bare.stderr.splitlines()[-1:]


async def test_other_languages_and_broken_pipes(sandbox: Sandbox) -> None:
    executed = await sandbox.execute(Execution(code="yes | head -1; echo $1", language="bash", args=["x y"]))
    assert (executed.status, executed.stdout, executed.stderr) == ("ok", "y\nx y\n", "")


async def test_what_a_request_may_not_ask_for(sandbox: Sandbox) -> None:
    for fields in (
        {"timeout": 10},
        {"memory": 9999},
        {"language": "x"},
        {"files": {"../a": ""}},
        {"files": {"/a": ""}},
    ):
        with pytest.raises(RefusedError):
            await sandbox.execute(Execution.model_validate({"code": "", **fields}))


async def test_a_full_queue_and_a_cancelled_program(sandbox: Sandbox) -> None:
    long = asyncio.create_task(sandbox.execute(Execution(code="import time; time.sleep(9)")))
    await asyncio.sleep(0.2)
    waits = asyncio.create_task(sandbox.execute(Execution(code="print(1)")))
    await asyncio.sleep(0)
    with pytest.raises(SandboxBusyError):
        await sandbox.execute(Execution(code=""))
    long.cancel()
    assert (await asyncio.wait_for(waits, 3)).stdout == "1\n"


async def test_a_worker_that_is_killed_is_replaced(sandbox: Sandbox) -> None:
    (worker,) = sandbox._all
    os.killpg(worker._process.pid, signal.SIGKILL)
    assert (await sandbox.execute(Execution(code="print(1)"))).stdout == "1\n"


async def test_a_sandbox_that_is_closed_keeps_nobody_waiting() -> None:
    box = Sandbox(ENGINE)
    await box.start()
    tasks = [asyncio.create_task(box.execute(Execution(code="import time; time.sleep(9)"))) for _ in range(2)]
    await asyncio.sleep(0.2)
    await box.close()
    found = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 3)
    assert [type(one) for one in found] == [SandboxBusyError, SandboxBusyError]
    assert not list(Path("/sys/fs/cgroup").glob(f"*/**/matrix-{os.getpid()}-*"))
