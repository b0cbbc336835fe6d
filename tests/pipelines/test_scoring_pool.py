from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from matrix.data.rows import Score
from matrix.errors import DataError
from matrix.pipelines.scoring_pool import ScoringPool
from matrix.spec.workload import TextScorerSpec

MATH = TextScorerSpec(kind="math", reference="{{ answer }}")
NUMBER = TextScorerSpec(kind="number", reference="{{ answer }}")
HOSTILE = ["10**10**10**10", r"\boxed{\sum_{k=1}^{10^9} \frac{1}{k}}"]


def children(pid: int | None = None) -> list[int]:
    """Running processes started by a process (this one by default), and by those in turn."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(") ")[2].split()[:2]
        except FileNotFoundError:
            continue
        if state != "Z":
            parents[int(stat.parent.name)] = int(parent)
    found: list[int] = []
    families = [pid or os.getpid()]
    while families:
        family = families.pop()
        new = [child for child, parent in parents.items() if parent == family]
        found += new
        families += new
    return found


def workers(pid: int | None = None) -> list[int]:
    commands = {child: Path(f"/proc/{child}/cmdline") for child in children(pid)}
    return [child for child, file in commands.items() if file.exists() and "spawn_main" in file.read_text()]


async def eventually(condition: Callable[[], bool], limit_s: float = 60) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.05)


async def test_scores_every_text_with_every_scorer_by_label() -> None:
    named = TextScorerSpec(kind="exact", name="same", reference="{{ answer }}")
    async with ScoringPool([MATH, NUMBER, named]) as pool:
        scores = await pool.score(
            [r"\boxed{0.5}", "1/2", "?"], {"math": r"\frac{1}{2}", "number": "0.5", "same": "1/2."}
        )
    assert scores == {
        "math": Score([1.0, 1.0, 0.0], ["1/2", "1/2", None]),
        "number": Score([1.0, 1.0, 0.0], ["0.5", "0.5", None]),
        "same": Score([0.0, 1.0, 0.0], [r"\boxed{0.5}", "1/2", None]),
    }


async def test_starts_no_process_for_scorers_that_cannot_hang() -> None:
    async with ScoringPool([NUMBER], workers=2) as pool:
        assert await pool.score(["#### 4"], {"number": "4"}) == {"number": Score([1.0], ["4"])}
        assert workers() == []


async def test_entering_does_not_wait_for_workers_and_leaving_ends_them() -> None:
    began = time.perf_counter()
    async with ScoringPool([MATH], workers=2) as pool:
        assert time.perf_counter() - began < 0.5
        await pool.score(["1"], {"math": "1"})
        assert len(workers()) == 2
    assert workers() == []


async def test_hostile_answers_time_out_one_by_one_and_the_next_call_works() -> None:
    async with ScoringPool([MATH], timeout_s=1) as pool:
        await pool.score(["1"], {"math": "1"})
        scores = await pool.score([HOSTILE[0], "It is 3.", *HOSTILE[1:]], {"math": "3"})
        assert scores["math"] == Score([0.0, 1.0, 0.0], [None, "3", None])
        assert pool.timed_out == 2
        began = time.perf_counter()
        assert await pool.score([r"\boxed{3}"], {"math": "3"}) == {"math": Score([1.0], ["3"])}
        assert time.perf_counter() - began < 30


async def test_rows_are_scored_while_another_worker_hangs() -> None:
    async with ScoringPool([MATH], workers=2, timeout_s=60) as pool:
        await pool.score(["1", "1"], {"math": "1"})
        hanging = asyncio.create_task(pool.score([HOSTILE[0]], {"math": "1"}))
        await asyncio.sleep(0.2)
        for number in range(20):
            assert (await pool.score([str(number)], {"math": str(number)}))["math"].values == [1.0]
        assert not hanging.done()
        hanging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hanging


async def test_a_cancelled_call_gives_its_worker_back() -> None:
    async with ScoringPool([MATH], timeout_s=60) as pool:
        await pool.score(["1"], {"math": "1"})
        hanging = asyncio.create_task(pool.score([HOSTILE[0]], {"math": "1"}))
        await asyncio.sleep(0.5)
        hanging.cancel()
        async with asyncio.timeout(30):
            assert (await pool.score(["1"], {"math": "1"}))["math"].values == [1.0]


async def test_leaving_does_not_wait_for_a_worker_that_hangs() -> None:
    async with ScoringPool([MATH], timeout_s=60) as pool:
        await pool.score(["1"], {"math": "1"})
        hanging = asyncio.create_task(pool.score([HOSTILE[0]], {"math": "1"}))
        await asyncio.sleep(0.5)
        hanging.cancel()
        began = time.perf_counter()
    assert time.perf_counter() - began < 2
    assert workers() == []


async def test_a_worker_that_is_killed_at_rest_is_replaced() -> None:
    async with ScoringPool([MATH]) as pool:
        await pool.score(["1"], {"math": "1"})
        (worker,) = workers()
        os.kill(worker, signal.SIGKILL)
        assert (await pool.score(["2"], {"math": "2"}))["math"] == Score([1.0], ["2"])
        assert pool.timed_out == 0


async def test_a_worker_that_is_killed_at_work_costs_that_text_alone() -> None:
    async with ScoringPool([MATH], timeout_s=60) as pool:
        await pool.score(["1"], {"math": "1"})
        hanging = asyncio.create_task(pool.score([HOSTILE[0], "2"], {"math": "2"}))
        await asyncio.sleep(0.5)
        os.kill(workers()[0], signal.SIGKILL)
        assert (await hanging)["math"] == Score([0.0, 1.0], [None, "2"])
        assert pool.timed_out == 1


async def test_ctrl_c_does_not_reach_workers_even_as_they_start() -> None:
    async with ScoringPool([MATH]) as pool:
        started = workers()
        for worker in started:
            os.kill(worker, signal.SIGINT)
        assert (await pool.score(["1"], {"math": "1"}))["math"].values == [1.0]
        assert workers() == started
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


async def test_a_reference_without_an_answer_is_a_data_error_before_and_while_scoring() -> None:
    async with ScoringPool([NUMBER, MATH]) as pool:
        with pytest.raises(DataError, match="reference 'seven' is not a number"):
            pool.check({"number": "seven", "math": "1"})
        with pytest.raises(DataError, match="scorer math"):
            await pool.score(["1"], {"number": "1", "math": r"\boxed{}"})
        pool.check({"number": "7", "math": "1"})


DRIVER = f"""
import asyncio
from matrix.pipelines.scoring_pool import ScoringPool
from matrix.spec.workload import TextScorerSpec

async def main():
    async with ScoringPool([TextScorerSpec(kind="math", reference="x")], workers=2, timeout_s=600) as pool:
        await pool.score(["1"], {{"math": "1"}})
        print("ready", flush=True)
        await pool.score([{HOSTILE[0]!r}], {{"math": "1"}})

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.parametrize("while_starting", [False, True])
async def test_no_worker_outlives_a_driver_that_is_killed(tmp_path: Path, while_starting: bool) -> None:
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    driver = subprocess.Popen([sys.executable, script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert driver.stdout is not None
        if while_starting:
            await eventually(lambda: len(workers(driver.pid)) == 2)
        else:
            await asyncio.to_thread(driver.stdout.readline)
            await asyncio.sleep(1)
        family = children(driver.pid)
        assert len(family) >= 2
    finally:
        driver.kill()
        driver.communicate()
    await eventually(lambda: not any(_runs(pid) for pid in family), limit_s=10)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
