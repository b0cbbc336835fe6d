"""Whose code is running: seen after a kill, and when somebody hangs."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import pytest

from matrix.agents.mark import Culprit, Mark, culprit, marked_writers
from matrix.data.rows import RowKey
from tests.agents.small_teams import in_process, run, team_file, team_spec, work
from tests.fake_engine import FakeEngine

KEY = RowKey(7, 2)
PROCESS = """
    import asyncio, os, signal, sys, time
    from pathlib import Path
    from matrix.agents.mark import Mark
    from matrix.data.rows import RowKey

    folder = Path(sys.argv[1])

    async def ends():
        await asyncio.sleep(0.01)
        {end}

    async def waits(number):
        for _ in range(1000):
            await asyncio.sleep(0.001 * number)

    async def main():
        mark = Mark(folder, "driver-1")
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(mark.running(RowKey(n, 0), waits(n))) for n in range(1, 20)]
        await asyncio.sleep(0.02)
        task = loop.create_task(mark.running(RowKey(7, 2), ends()))
        await asyncio.sleep(0.05)
        {outside}
        await task

    asyncio.run(main())
"""


def ended(folder: Path, end: str, outside: str = "pass") -> int:
    return in_process(PROCESS.format(end=end, outside=outside), str(folder)).returncode


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("os._exit(3)", 3),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("os.abort()", -signal.SIGABRT),
        ("import ctypes; ctypes.string_at(0)", -signal.SIGSEGV),
    ],
)
def test_the_row_that_a_process_dies_of(tmp_path: Path, end: str, code: int) -> None:
    assert ended(tmp_path / "steps", end) == code
    assert marked_writers(tmp_path / "steps") == ["driver-1"]
    assert culprit(tmp_path / "steps", "driver-1") == Culprit(KEY, "")
    assert culprit(tmp_path / "steps", "driver-1") is None, "told once"


def test_nobody_s_row_while_all_wait(tmp_path: Path) -> None:
    code = ended(tmp_path, "await asyncio.sleep(9)", "time.sleep(0.1); os.kill(os.getpid(), signal.SIGKILL)")
    assert code == -signal.SIGKILL
    assert culprit(tmp_path, "driver-1") is None


def test_a_mark_that_is_not_there_or_half_there(tmp_path: Path) -> None:
    assert culprit(tmp_path, "driver") is None
    (tmp_path / "mark-driver").write_bytes(b"\0" * 5)
    assert culprit(tmp_path, "driver") is None


async def test_a_mark_stands_only_while_the_code_runs(tmp_path: Path) -> None:
    mark = Mark(tmp_path, "driver")
    seen = []

    def look() -> None:
        seen.append(culprit_now(tmp_path))

    async def work() -> str:
        look()
        await asyncio.sleep(0.01)
        look()
        return "done"

    task = asyncio.get_running_loop().create_task(mark.running(KEY, work()))
    await asyncio.sleep(0)
    look()
    assert await task == "done"
    look()
    assert seen == [KEY, None, KEY, None]
    mark.close()


def culprit_now(folder: Path) -> RowKey | None:
    """What `culprit` would say, without its being told."""
    copy = folder / "mark-copy"
    copy.write_bytes((folder / "mark-driver").read_bytes())
    found = culprit(folder, "copy")
    return found.key if found is not None else None


async def test_errors_and_cancellation_pass_through(tmp_path: Path) -> None:
    mark = Mark(tmp_path, "driver")

    async def fails() -> None:
        await asyncio.sleep(0)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await mark.running(KEY, fails())
    cleaned = []

    async def waits() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cleaned.append(True)
            return "kept on"
        return ""

    task = asyncio.get_running_loop().create_task(mark.running(KEY, waits()))
    await asyncio.sleep(0.01)
    task.cancel()
    assert await task == "kept on"
    assert cleaned == [True]
    assert culprit(tmp_path, "driver") is None
    mark.close()


@pytest.mark.parametrize("hangs", ["while True: pass", "time.sleep(0.8)", "for _ in range(10**12): time.sleep(0.01)"])
async def test_a_role_that_never_lets_go_of_the_loop(tmp_path: Path, hangs: str) -> None:
    code = f"""
        async def alone(state, tools):
            if state.task["x"] == 1:
                {hangs}
            await asyncio.sleep(0.01)
            return "fine"
    """
    spec = team_spec(team_file(tmp_path, code), order=["alone"], repeat=False, roles={"alone": {"timeout_s": 0.5}})
    began = time.monotonic()
    found = await run(spec, tmp_path, work({"x": 0}, {"x": 1}, {"x": 2}))
    assert time.monotonic() - began < 10
    assert [row.status for row in found] == ["ok", "error", "ok"]
    assert found[1].error is not None
    assert found[1].error.type == "hangs"
    assert "keeps its process busy" in found[1].error.message
    assert "in alone" in (found[1].error.traceback or "")


async def test_a_busy_loop_is_not_a_role_that_hangs(tmp_path: Path) -> None:
    code = """
        async def alone(state, tools):
            for _ in range(20):
                time.sleep(0.02)
                await asyncio.sleep(0)
            return "fine"
    """
    spec = team_spec(team_file(tmp_path, code), order=["alone"], repeat=False, roles={"alone": {"timeout_s": 0.3}})
    found = await run(spec, tmp_path, work({}, {}, {}))
    # Each row's turn is longer than its time, most of which it waits for the others.
    assert not any(row.error is not None and row.error.type == "hangs" for row in found)


async def test_a_watch_ends_with_its_mark(tmp_path: Path) -> None:
    mark = Mark(tmp_path, "driver")
    mark.watch(0.2)
    mark.close()
    time.sleep(1)
    assert marked_writers(tmp_path) == ["driver"]


async def test_the_time_that_one_row_takes_from_all_is_not_theirs(tmp_path: Path) -> None:
    """Neither turns nor requests of others are late for it."""
    code = """
        async def alone(state, tools):
            if state.task["x"] == "hangs":
                await asyncio.sleep(0.1)
                time.sleep(1.9)
            if state.task["x"] == "asks":
                return await tools.llm([{"role": "user", "content": "x"}])
            await asyncio.sleep(0.3)
            return "fine"
    """
    limits = {"request_timeout_s": 1, "try_timeout_s": 0.9, "max_attempts": 1}
    spec = team_spec(
        team_file(tmp_path, code), limits, order=["alone"], repeat=False, roles={"alone": {"timeout_s": 1}},
        limits={"seconds": 1.5},
    )  # fmt: skip
    with FakeEngine.in_thread(latency_s=0.4) as engine:
        found = await run(spec, tmp_path, work({"x": "waits"}, {"x": "hangs"}, {"x": "asks"}), engine.url)
    assert [row.status for row in found] == ["ok", "error", "ok"]
    assert [row.termination for row in found] == ["end", "error", "end"]
