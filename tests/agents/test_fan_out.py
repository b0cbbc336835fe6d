"""Several roles at the same time, and their join."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.agents.small_teams import run_one, team_file, team_spec, texts

FAN: dict[str, Any] = {
    "start": "ask",
    "edges": {"ask": {"to": ["left", "right"], "join": "judge"}, "judge": "end"},
}


def fan(folder: Path, left: str, right: str, ask: str = "pass", **agents: Any) -> Any:
    code = f"""
        async def ask(state, tools):
            {ask}
            return "which?"

        async def left(state, tools):
            await asyncio.sleep(0.05)
            {left}

        async def right(state, tools):
            {right}

        async def judge(state, tools):
            return Turn("judged", data=dict(state.scratch))
    """
    return run_one(team_spec(team_file(folder, code), **{**FAN, **agents}), folder)


async def test_branches_see_the_same_and_come_in_their_order(tmp_path: Path) -> None:
    say = 'return f"{len(state.history)} {state.turns}"'
    row = await fan(tmp_path, say, say)
    assert texts(row) == [("ask", "which?"), ("left", "1 1"), ("right", "1 1"), ("judge", "judged")]
    assert row.termination == "end"


async def test_what_branches_change_is_put_together(tmp_path: Path) -> None:
    ask = "state.scratch.update(a=1, b=1, both=1, c=1); state.metrics.update(m=0.0, n=0.0)"
    row = await fan(
        tmp_path,
        'state.scratch.update(a=2, both=5, new={"x": 1}); state.metrics["m"] = 1.0',
        'state.scratch.update(b=3, both=5); state.metrics["n"] = 2.0; del state.scratch["c"]',
        ask=ask,
    )
    assert row.history[-1].data == {"a": 2, "b": 3, "both": 5, "new": {"x": 1}}
    assert row.metrics == {"m": 1.0, "n": 2.0}


@pytest.mark.parametrize("ask", ["pass", "state.scratch['x'] = 0"])
async def test_branches_that_disagree(tmp_path: Path, ask: str) -> None:
    row = await fan(tmp_path, "state.scratch['x'] = 1", "state.scratch['x'] = 2", ask=ask)
    assert row.error is not None
    assert row.error.type == "route"
    assert "at the same time set scratch['x'] to different values" in row.error.message


@pytest.mark.parametrize("turn", ["Turn(end='over')", "Turn(next='judge')"])
async def test_a_branch_has_no_say_in_who_is_next(tmp_path: Path, turn: str) -> None:
    row = await fan(tmp_path, f"return {turn}", "return 'x'")
    assert row.error is not None
    assert row.error.message == "left is one of several at the same time: who is next is the edge's join"


async def test_an_exception_in_a_branch(tmp_path: Path) -> None:
    row = await fan(tmp_path, "await asyncio.sleep(60)", "raise ValueError('no')")
    assert row.error is not None
    assert (row.error.type, row.error.message) == ("ValueError", "right: no")
    assert row.took_s < 5


async def test_the_timeout_of_a_branch_is_its_own(tmp_path: Path) -> None:
    roles = {"left": {"timeout_s": 0.2}}
    row = await fan(tmp_path, "await asyncio.sleep(60)", "await asyncio.sleep(0.5)", roles=roles)
    assert row.error is not None
    assert (row.error.type, row.error.message[:4]) == ("timeout", "left")


async def test_the_limit_of_seconds_while_branches_run(tmp_path: Path) -> None:
    row = await fan(tmp_path, "await asyncio.sleep(60)", "await asyncio.sleep(60)", limits={"seconds": 0.3})
    assert (row.status, row.termination) == ("ok", "max_seconds")


async def test_turns_of_branches_count(tmp_path: Path) -> None:
    row = await fan(tmp_path, "return 'x'", "return 'x'", limits={"turns": 2})
    assert (row.termination, len(row.history)) == ("max_turns", 1)


async def test_one_branch_of_several(tmp_path: Path) -> None:
    code = """
        async def ask(state, tools): return Turn("x", next="right")
        async def left(state, tools): return "left"
        async def right(state, tools): return "right"
        async def judge(state, tools): return "judged"
    """
    spec = team_spec(team_file(tmp_path, code), **FAN)
    assert texts(await run_one(spec, tmp_path)) == [("ask", "x"), ("right", "right"), ("judge", "judged")]
    edges = {"ask": {"to": ["left", "right"], "join": "end"}}
    spec = team_spec(team_file(tmp_path, code), start="ask", edges=edges)
    assert texts(await run_one(spec, tmp_path / "b")) == [("ask", "x"), ("right", "right")]
