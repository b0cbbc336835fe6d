"""A workflow that goes on in another peer: by a message, in the middle of everything."""

from __future__ import annotations

import asyncio
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from matrix.agents.team import Team
from matrix.agents.workflow import LeavingError
from matrix.data.rows import AgentRow
from matrix.data.work import Work
from matrix.errors import DataError
from tests.agents.small_teams import opened, team_file, team_spec, texts, work, written
from tests.fake_engine import FakeEngine, echo

ASKER = """
    async def asker(state, tools):
        state.scratch.setdefault("seen", []).append({"turn": state.turns})
        state.metrics["turns"] = float(state.turns)
        said = await tools.llm([{"role": "user", "content": f"row {state.id} turn {state.turns}"}])
        return Turn(said.text[0], data={"n": state.turns}, next="end" if state.turns == 5 else None)
"""


class Over:
    """Told what comes of rows."""

    def __init__(self) -> None:
        self.handed_over: list[Work] = []
        self.errors: list[BaseException] = []
        self.finished = 0

    def __call__(self, error: BaseException | None) -> None:
        if isinstance(error, LeavingError):
            self.handed_over.append(error.args[0])
        elif error is not None:
            self.errors.append(error)
        else:
            self.finished += 1


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def begin(team: Team, rows: list[Work]) -> Over:
    over = Over()
    for one in rows:
        team.begin(one, over)
    await asyncio.sleep(0)
    return over


async def test_rows_go_on_elsewhere_and_nothing_is_asked_twice(tmp_path: Path) -> None:
    spec = team_spec(team_file(tmp_path, ASKER), order=["asker"], ends=["asker"])
    async with (
        FakeEngine(latency_s=0.02) as engine,
        opened(spec, tmp_path, engine.url, "driver-0") as first,
        opened(spec, tmp_path, engine.url, "driver-1") as second,
    ):
        rows = work(*({"x": number} for number in range(10)))
        over = await begin(first, rows)
        await until(lambda: len(engine.requests) > 25)
        first.give(4)
        await until(lambda: len(over.handed_over) == 4)
        assert first.rows == 6 - over.finished
        moved = {one.key for one in over.handed_over}
        assert moved == {one.key for one in rows[6:]}, "those that began last"
        assert all(one.message and not one.steps for one in over.handed_over)
        later = await begin(second, over.handed_over)
        await until(lambda: over.finished + later.finished == 10)
        asked = Counter(map(echo, engine.requests))
    assert asked == {f"row {row} turn {turn}": 1 for row in range(10) for turn in range(6)}
    for row in written(tmp_path):
        assert [text for _, text in texts(row)] == [f"row {row.id} turn {turn}" for turn in range(6)]
        assert [entry.data for entry in row.history] == [{"n": turn} for turn in range(6)]
        assert row.metrics == {"turns": 5.0}
        assert row.tokens["completion_tokens"] == 6 * 4
        assert [entry.at_s for entry in row.history] == sorted(entry.at_s for entry in row.history)
        assert not any(call.replayed for entry in row.history for call in entry.calls)
    assert {row.key for row in written(tmp_path / "none")} == set()


async def one_moves(folder: Path, code: str, begun: Callable[[], object], **agents: object) -> tuple[Over, AgentRow]:
    """Have a row move once its first turn has begun."""
    spec = team_spec(team_file(folder, code), **{"order": ["asker"], "ends": ["asker"], **agents})
    async with opened(spec, folder, writer="driver-0") as first, opened(spec, folder, writer="driver-1") as second:
        over = await begin(first, work({"x": 1}))
        await until(begun)
        first.give(1)
        await until(lambda: over.finished or over.handed_over or over.errors)
        assert over.errors == []
        if over.handed_over:
            later = await begin(second, over.handed_over)
            await until(lambda: later.finished or later.errors)
            assert later.errors == []
    (row,) = written(folder)
    return over, row


async def test_what_it_holds_is_given_back_where_it_ends(tmp_path: Path) -> None:
    code = """
        class asker(Role):
            async def act(self, state, tools):
                if state.turns == 0:
                    await tools.once("place", self.take)
                    Path(__file__).with_name("began").write_text("")
                    await asyncio.sleep(0.1)
                return Turn("x", next="end" if state.turns == 1 else None)

            async def take(self):
                return {"at": 1}

            async def release(self, state, held):
                with open(Path(__file__).with_name("given"), "a") as file:
                    file.write(f"{held} {state.turns}")
    """
    over, row = await one_moves(tmp_path, code, (tmp_path / "began").exists)
    assert len(over.handed_over) == 1
    assert row.termination == "end"
    assert (tmp_path / "given").read_text() == "{'place': {'at': 1}} 2"


WAITS = """
    async def asker(state, tools):
        if state.turns == 0:
            {does}
            Path(__file__).with_name("began").write_text("")
            await asyncio.sleep(0.05)
            return "first"
        return Turn(repr({sees}), next="end")
"""


@pytest.mark.parametrize(
    ("does", "sees"),
    [
        ("state.scratch['x'] = {1, 2}", "state.scratch['x']"),
        ("state.scratch['x'] = {1: 2}", "state.scratch['x']"),
        ("state.scratch['x'] = Path('a')", "state.scratch['x']"),
        ("state.scratch['x'] = (1, [2])", "state.scratch['x']"),
        ("state.scratch['x'] = 2**70", "state.scratch['x']"),
        ("state.scratch['x'] = float('nan')", "state.scratch['x']"),
    ],
)
async def test_a_row_sees_the_same_wherever_it_goes_on(tmp_path: Path, does: str, sees: str) -> None:
    over, row = await one_moves(tmp_path, WAITS.format(does=does, sees=sees), (tmp_path / "began").exists)
    assert len(over.handed_over) == 1
    namespace: dict[str, object] = {"Path": Path, "state": type("State", (), {"scratch": {}})}
    exec(does, namespace)
    assert [entry.text for entry in row.history] == ["first", repr(eval(sees, namespace))]


async def test_what_cannot_be_packed_stays_with_its_row(tmp_path: Path) -> None:
    does, sees = "state.scratch['x'] = lambda: 5", "state.scratch['x']()"
    over, row = await one_moves(tmp_path, WAITS.format(does=does, sees=sees), (tmp_path / "began").exists)
    assert over.handed_over == []
    assert [entry.text for entry in row.history] == ["first", "5"]


async def test_plain_values_move(tmp_path: Path) -> None:
    does = "state.scratch['x'] = {'a': [1, 2.5, None, True, 'ü']}"
    over, row = await one_moves(
        tmp_path, WAITS.format(does=does, sees="state.scratch['x']"), (tmp_path / "began").exists
    )
    assert len(over.handed_over) == 1
    assert row.history[1].text == repr({"a": [1, 2.5, None, True, "ü"]})


async def test_its_time_goes_on(tmp_path: Path) -> None:
    code = """
        async def asker(state, tools):
            Path(__file__).with_name("began").write_text("")
            await asyncio.sleep(0.3)
            return "x"
    """
    over, row = await one_moves(tmp_path, code, (tmp_path / "began").exists, limits={"seconds": 1.0})
    assert len(over.handed_over) == 1
    assert row.termination == "max_seconds"
    assert 1 <= row.took_s < 2
    assert len(row.history) in {2, 3}


async def test_a_message_of_another_version(tmp_path: Path) -> None:
    spec = team_spec(team_file(tmp_path, ASKER), order=["asker"], ends=["asker"])
    async with opened(spec, tmp_path) as team:
        over = await begin(team, [work({})[0]._replace(message=pickle.dumps({"version": 99}))])
        await until(lambda: over.errors)
    assert isinstance(over.errors[0], DataError)
    assert "version 99, not 2" in str(over.errors[0])


async def test_a_row_that_moved_and_is_lost_with_its_peer_goes_on_from_its_steps(tmp_path: Path) -> None:
    """Both peers die: the message is lost with them, the journals of both are not."""
    from matrix.agents.attempts import PastAttempts

    spec = team_spec(team_file(tmp_path, ASKER), order=["asker"], ends=["asker"])
    async with FakeEngine(latency_s=0.02) as engine:
        async with opened(spec, tmp_path, engine.url, "driver-0") as first:
            over = await begin(first, work({}))
            await until(lambda: len(engine.requests) == 2)
            first.give(1)
            await until(lambda: over.handed_over)
        async with opened(spec, tmp_path, engine.url, "driver-1") as second:
            await begin(second, over.handed_over)
            await until(lambda: len(engine.requests) == 4)
        past = PastAttempts(tmp_path / "steps", 6, set())
        async with opened(spec, tmp_path, engine.url) as third:
            over = await begin(third, [past.resumed(one) for one in work({})])
            await until(lambda: over.finished)
        asked = Counter(map(echo, engine.requests))
    (row,) = written(tmp_path)
    assert len(row.history) == 6
    replayed = [call.replayed for entry in row.history for call in entry.calls]
    assert replayed[:3] == [True] * 3
    assert replayed[4:] == [False] * 2
    assert asked.total() <= 7, "the one in flight at the second end may be asked for again"
