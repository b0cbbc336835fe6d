"""Workers that are killed while they have a program, and what an owner that was killed leaves to the next."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from matrix.sandbox.cgroups import make_cgroup
from matrix.sandbox.execution import Execution
from matrix.sandbox.jail import INSIDE
from matrix.sandbox.pool import Sandbox
from matrix.sandbox.worker import Worker
from matrix.spec.services import SandboxEngine
from tests.sandbox.owner import start_owner

CGROUPS = Path("/sys/fs/cgroup")


@pytest_asyncio.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    box = Sandbox(SandboxEngine(kind="sandbox", workers=1, timeout_s=60))
    await box.start()
    yield box
    await box.close()


async def busy(sandbox: Sandbox, but: Worker | None = None) -> Worker:
    """The worker, once it runs a program; not one that is dead already."""
    async with asyncio.timeout(20):
        while not sandbox.running or but in sandbox._all:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)
    (worker,) = sandbox._all
    return worker


def kill(worker: Worker) -> None:
    os.killpg(worker._process.pid, signal.SIGKILL)


async def test_a_program_is_run_again_when_its_worker_is_killed(sandbox: Sandbox) -> None:
    task = asyncio.create_task(sandbox.execute(Execution(code="import time; time.sleep(1); print('done')")))
    first = await busy(sandbox)
    kill(first)
    told = await task
    assert (told.status, told.stdout) == ("ok", "done\n")
    assert first not in sandbox._all


async def test_a_program_that_loses_two_workers_is_killed(sandbox: Sandbox) -> None:
    task = asyncio.create_task(sandbox.execute(Execution(code="import time; time.sleep(50)")))
    first = await busy(sandbox)
    kill(first)
    kill(await busy(sandbox, first))
    told = await asyncio.wait_for(task, 20)
    assert (told.status, told.signal, told.exit_code) == ("killed", "SIGKILL", None)
    assert (await sandbox.execute(Execution(code="print(1)"))).stdout == "1\n"


async def test_a_judged_program_that_loses_two_workers_has_not_passed(sandbox: Sandbox) -> None:
    judged = Execution(code="import time; time.sleep(50)\ndef f(): return 1", test="assert f() == 1")
    task = asyncio.create_task(sandbox.execute(judged))
    first = await busy(sandbox)
    kill(first)
    kill(await busy(sandbox, first))
    told = await asyncio.wait_for(task, 20)
    assert (told.status, told.passed, told.failure) == ("killed", False, "no verdict")


QUEUE = "import ctypes, os; libc = ctypes.CDLL(None, use_errno=True); "


async def test_queues_of_messages_are_not_seen_by_the_next(sandbox: Sandbox) -> None:
    kept = QUEUE + "print(libc.msgget(77, 0o1600) >= 0)"
    posix = QUEUE + "print(libc.mq_open(b'/left', os.O_CREAT | os.O_RDWR, 0o600, None) >= 0, ctypes.get_errno())"
    look = QUEUE + "print(libc.msgget(77, 0) < 0, libc.mq_open(b'/left', os.O_RDWR) < 0)"
    assert (await sandbox.execute(Execution(code=kept))).stdout == "True\n"
    # The limit of their bytes is 0: it can't even be made.
    assert (await sandbox.execute(Execution(code=posix))).stdout == "False 24\n"
    assert (await sandbox.execute(Execution(code=look))).stdout == "True True\n"


def cgroups(owner: int) -> list[Path]:
    return [Path(folder) for folder, _, _ in os.walk(CGROUPS) if Path(folder).name.startswith(f"matrix-{owner}-")]


def test_what_a_killed_owner_leaves_is_taken_away_by_the_next() -> None:
    owner = start_owner()
    there = cgroups(owner.pid)
    owner.kill()
    owner.wait()
    # Those of its workers are in namespaces of their own, which go with their last process.
    assert str(INSIDE) not in Path("/proc/self/mountinfo").read_text()
    if not there:
        pytest.skip("this machine lets us make no cgroup")
    deadline = time.monotonic() + 10
    while cgroups(owner.pid):
        assert time.monotonic() < deadline, cgroups(owner.pid)
        # One whose last process is only just over can't be taken away yet.
        cgroup = make_cgroup(1)
        assert cgroup is not None
        cgroup.remove()
        time.sleep(0.05)
