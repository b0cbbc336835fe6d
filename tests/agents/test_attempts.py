"""What earlier attempts at rows left: steps that are read back, and deaths that they are to blame for."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from matrix.agents import mark
from matrix.agents.attempts import PastAttempts
from matrix.agents.steps import Step, StepJournal
from matrix.data.rows import RowError, RowKey
from tests.agents.small_teams import in_process, run, team_file, team_spec, texts, work
from tests.fake_engine import FakeEngine, echo

ROWS = work({"x": 0}, {"x": 1}, {"x": 2})


def dies(folder: Path, key: RowKey, writer: str = "driver") -> None:
    """Leave what a process leaves that dies of a row."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"mark-{writer}").write_bytes(mark._MARK.pack(key.index, key.trial, 1))


def past(folder: Path, most: int = 2, done: frozenset[RowKey] = frozenset()) -> PastAttempts:
    return PastAttempts(folder / "steps", most, done)


def test_nothing_is_known_of_a_new_run(tmp_path: Path) -> None:
    found = past(tmp_path)
    assert [found.resumed(one) for one in ROWS] == ROWS
    assert found.died("driver") is None


def test_steps_of_earlier_starts_come_with_the_work(tmp_path: Path) -> None:
    journal = StepJournal(tmp_path / "steps", "driver")
    for key in (RowKey(0, 0), RowKey(1, 0)):
        journal.append(key, Step("0.1", "llm", "d", key.index))
    found = past(tmp_path, done=frozenset({RowKey(0, 0)}))
    assert [len(found.resumed(one).steps) for one in ROWS] == [0, 1, 0]
    found.finished(RowKey(1, 0))
    assert found.resumed(ROWS[1]) == ROWS[1]


def test_deaths_add_up_over_starts(tmp_path: Path) -> None:
    steps = tmp_path / "steps"
    dies(steps, RowKey(1, 0))
    assert past(tmp_path).resumed(ROWS[1]).give_up is None
    assert past(tmp_path).resumed(ROWS[1]).give_up is None, "a start without a death is none"
    found = past(tmp_path)
    dies(steps, RowKey(1, 0), "driver-3")
    assert found.died("driver-3") == RowKey(1, 0)
    assert found.died("driver-3") is None
    gave_up = found.resumed(ROWS[1])
    assert gave_up.give_up == RowError("died", "its process died 2 times while the row was running in it", 2)
    assert past(tmp_path).resumed(ROWS[1]) == gave_up
    assert past(tmp_path).resumed(ROWS[0]) == ROWS[0]


def test_half_a_line_of_deaths_is_none(tmp_path: Path) -> None:
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "deaths.jsonl").write_text('[[1, 0], ""]\n[[1, 0], "')
    assert past(tmp_path, most=1).resumed(ROWS[1]).give_up
    assert past(tmp_path, most=2).resumed(ROWS[1]).give_up is None
    dies(tmp_path / "steps", RowKey(1, 0))
    assert past(tmp_path, most=2).resumed(ROWS[1]).give_up


ASKS = """
    async def alone(state, tools):
        said = []
        for number in range(3):
            said.append((await tools.llm([{"role": "user", "content": f"{state.id} {number}"}])).text[0])
            if number == state.task["dies_at"]:
                os._exit(9)
        await tools.once("note", note, state.id)
        return " ".join(said)

    async def note(id):
        with open(Path(__file__).with_name("notes"), "a") as file:
            file.write(f"{id} ")
"""
HANGS = """
    async def alone(state, tools):
        await tools.llm([{"role": "user", "content": state.id}])
        if state.task["dies_at"]:
            HANG
        return "fine"
"""
START = """
    import asyncio, sys
    from pathlib import Path
    from matrix.agents import mark
    from tests.agents.small_teams import *

    folder = Path(sys.argv[1])
    mark._GRACE_S = 1.0
    role = {"timeout_s": float(sys.argv[3])}
    spec = team_spec(folder / "team.py", {"max_attempts": 2}, order=["alone"], repeat=False, roles={"alone": role})
    rows = work(*({"dies_at": 1 if number == 3 else None} for number in range(6)))
    asyncio.run(run(spec, folder, rows, sys.argv[2]))
"""


def test_a_row_that_kills_its_process_is_an_error_and_nothing_is_paid_twice(tmp_path: Path) -> None:
    team_file(tmp_path, ASKS)
    with FakeEngine.in_thread(latency_s=0.02) as engine:
        codes = [in_process(START, str(tmp_path), engine.url, "60").returncode for _ in range(3)]
        asked = Counter(map(echo, engine.requests))
    assert codes == [9, 9, 0]
    found = {row.id: row for row in _written(tmp_path)}
    assert len(found) == 6
    assert {id_ for id_, row in found.items() if row.status == "error"} == {"3"}
    assert found["3"].error is not None
    assert found["3"].error.type == "died"
    assert found["3"].error.message == "its process died 2 times while the row was running in it"
    for id_ in "01245":
        assert texts(found[id_]) == [("alone", f"{id_} 0 {id_} 1 {id_} 2")]
    # The poison row's first two, the others' three; what was in flight at a death may be asked for again.
    assert asked["3 0"] == asked["3 1"] == 1
    assert "3 2" not in asked
    assert all(asked[f"{id_} {number}"] in {1, 2, 3} for id_ in "01245" for number in range(3))
    assert sorted((tmp_path / "notes").read_text().split()) == list("01245")


@pytest.mark.parametrize("hang", ["time.sleep(60)", "import re; re.match('(a+)+$', 'a' * 60 + 'b')"])
def test_a_row_that_keeps_its_process_from_everything_is_an_error_once_that_is_ended(tmp_path: Path, hang: str) -> None:
    """In C, where no exception of ours gets; the second holds Python's lock, too."""
    team_file(tmp_path, HANGS.replace("HANG", hang))
    with FakeEngine.in_thread() as engine:
        first = in_process(START, str(tmp_path), engine.url, "0.5")
        assert first.returncode == 1, first.stderr
        again = in_process(START, str(tmp_path), engine.url, "0.5")
        assert again.returncode == 0, again.stderr
    found = {row.id: row for row in _written(tmp_path)}
    assert {id_ for id_, row in found.items() if row.status == "error"} == {"3"}
    assert found["3"].error is not None
    assert found["3"].error.type == "hangs"
    assert "nothing but the end of that helped" in found["3"].error.message
    assert re.search(r'team\.py", line \d+ in alone', found["3"].error.traceback or "")


def _written(folder: Path):  # type: ignore[no-untyped-def]
    from tests.agents.small_teams import written

    return written(folder)


async def test_a_replay_that_asks_for_something_else_makes_its_calls_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code = """
        async def alone(state, tools):
            said = [await tools.llm([{"role": "user", "content": f"{word} {state.id}"}]) for word in WORDS]
            return " ".join(one.text[0] for one in said)
    """
    file = team_file(tmp_path, code + "\n        WORDS = ['a', 'b', 'c']\n")
    spec = team_spec(file, order=["alone"], repeat=False)
    async with FakeEngine() as engine:
        await run(spec, tmp_path / "one", work({}), engine.url)
        # As if it had been killed before the row was written, and the code had changed.
        (tmp_path / "two").mkdir()
        (tmp_path / "one" / "steps").rename(tmp_path / "two" / "steps")
        other = tmp_path / "other"
        other.mkdir()
        file = team_file(other, code + "\n        WORDS = ['a', 'X', 'c']\n")
        (row,) = await run(team_spec(file, order=["alone"], repeat=False), tmp_path / "two", work({}), engine.url)
        asked = [echo(body) for body in engine.requests]
    assert asked == ["a 0", "b 0", "c 0", "X 0", "c 0"]
    assert row.history[0].text == "a 0 X 0 c 0"
    assert [call.replayed for call in row.history[0].calls] == [True, False, False]
    assert "row 0: asks for something else at its replay" in caplog.text


async def test_a_replayed_row_counts_its_tokens_and_says_what_was_replayed(tmp_path: Path) -> None:
    code = """
        async def alone(state, tools):
            await tools.llm([{"role": "user", "content": "one two"}])
            await tools.once("n", asyncio.sleep, 0, 5)
            state.scratch["n"] = await tools.once("n", asyncio.sleep, 0, 6)
            return Turn(data=state.scratch)
    """
    spec = team_spec(team_file(tmp_path, code), order=["alone"], repeat=False)
    async with FakeEngine() as engine:
        (first,) = await run(spec, tmp_path, work({}), engine.url)
        for part in (tmp_path / "rows").iterdir():
            part.unlink()
        (again,) = await run(spec, tmp_path, work({}), engine.url)
        assert len(engine.requests) == 1
    assert again.tokens == first.tokens == {"prompt_tokens": 2, "completion_tokens": 2, "cached_prompt_tokens": 0}
    assert [call.replayed for call in again.history[0].calls] == [True] * 3
    assert [call.usage for call in again.history[0].calls] == [call.usage for call in first.history[0].calls]
    assert again.history[0].data == {"n": 6}


async def test_what_a_row_held_is_given_back_when_nobody_tries_it_again(tmp_path: Path) -> None:
    code = """
        class alone(Role):
            async def act(self, state, tools):
                return "never"

            async def release(self, state, held):
                Path(__file__).with_name("given").write_text(f"{state.id} {held}")
    """
    journal = StepJournal(tmp_path / "steps", "driver")
    journal.append(RowKey(0, 0), Step("0.1", "once:place", "d", {"at": 1}))
    dies(tmp_path / "steps", RowKey(0, 0))
    spec = team_spec(team_file(tmp_path, code), {"max_attempts": 1}, order=["alone"], repeat=False)
    (row,) = await run(spec, tmp_path, work({}))
    assert row.error is not None
    assert row.error.type == "died"
    assert (tmp_path / "given").read_text() == "0 {'place': {'at': 1}}"
