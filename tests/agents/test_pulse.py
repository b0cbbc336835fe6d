"""How a team is doing, of one peer and of all."""

from __future__ import annotations

import asyncio
from pathlib import Path

from matrix.agents.pulse import Pulse, RoleCount, total
from matrix.spec import Price
from tests.agents.small_teams import opened, team_file, team_spec, work
from tests.fake_engine import FakeEngine

ONE = Pulse({"a": RoleCount(4, 2.0, 8, 1.0, 10, 4, 20, 1), "b": RoleCount(1)}, 3, [(5.0, "x", "a"), (1.0, "y", "b")])
TWO = Pulse(
    {"a": RoleCount(1, 1.0, 1, 1.0, 1, 0, 1, 1), "c": RoleCount(in_flight=2)}, 2, [(9.0, "z", "c"), (2.0, "w", "a")]
)


def test_peers_add_up() -> None:
    whole = total([ONE, TWO])
    assert whole.roles == {"a": RoleCount(5, 3.0, 9, 2.0, 11, 4, 21, 2), "b": RoleCount(1), "c": RoleCount(in_flight=2)}
    assert (whole.rows, whole.turns) == (5, 6)
    assert whole.slowest == [(9.0, "z", "c"), (5.0, "x", "a"), (2.0, "w", "a")]
    assert ONE.rows == 3, "they themselves stay as they are"
    assert total([]).metrics(0, {})["agents/turns_per_s"] == 0


def test_metrics() -> None:
    found = total([ONE, TWO]).metrics(2.0, {"a": Price(input_per_million=1e6, output_per_million=1e5)})
    assert found["agents/rows_in_flight"] == 5
    assert (found["agents/turns"], found["agents/turns_per_s"]) == (6, 3.0)
    assert (found["agents/a/turn_s"], found["agents/a/call_s"]) == (0.6, 0.2222)
    assert (found["agents/a/prompt_tokens"], found["agents/c/in_flight"]) == (11, 2)
    assert "agents/c/turn_s" not in found
    assert (found["agents/a/cost_usd"], found.get("agents/b/cost_usd")) == (13.1, None)


def test_a_line() -> None:
    assert ONE.line(2.0) == "3 workflows in flight, 2.5 turns/s (a 1); slowest: row x 5 s, at a"
    assert Pulse().line(1.0) == "0 workflows in flight, 0.0 turns/s"


async def test_of_a_team_at_work(tmp_path: Path) -> None:
    code = """
        async def ask(state, tools):
            await tools.llm([{"role": "user", "content": "x"}])
            return "x"

        async def wait(state, tools):
            await asyncio.sleep(60)
    """
    spec = team_spec(team_file(tmp_path, code), order=["ask", "wait"], repeat=False)
    async with FakeEngine() as engine, opened(spec, tmp_path, engine.url) as team:
        for one in work(*({} for _ in range(5))):
            team.begin(one)
        async with asyncio.timeout(20):
            while team.pulse().roles["wait"].in_flight < 5:
                await asyncio.sleep(0.01)
        pulse = team.pulse()
    assert pulse.rows == 5
    assert (pulse.roles["ask"].turns, pulse.roles["ask"].calls, pulse.roles["ask"].completion_tokens) == (5, 5, 5)
    assert (pulse.roles["ask"].in_flight, pulse.roles["wait"].turns) == (0, 0)
    assert [(row, role) for _, row, role in pulse.slowest] == [("0", "wait"), ("1", "wait"), ("2", "wait")]
    assert team.pulse().rows == 0
    assert team.pulse().roles["wait"].in_flight == 0
