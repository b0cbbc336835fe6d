"""A whole team at work: what its roles see, what its rows hold, and how they end."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from matrix.data.rows import AgentRow, Score
from tests.agents.small_teams import run, run_one, team_file, team_spec, texts, work
from tests.fake_engine import Body, FakeEngine, echo

PAIR: dict[str, Any] = {"order": ["writer", "critic"], "ends": ["critic"]}


def one(folder: Path, code: str, **agents: Any) -> Any:
    """A row of a team whose only role is `alone`."""
    spec = team_spec(team_file(folder, code), **{"order": ["alone"], "repeat": False, **agents})
    return run_one(spec, folder, x="row")


# --- what a row holds -------------------------------------------------------------------------------------------------


async def test_history_scratch_metrics_and_termination(tmp_path: Path) -> None:
    file = team_file(
        tmp_path,
        """
        async def writer(state, tools):
            state.scratch["drafts"] = state.scratch.get("drafts", 0) + 1
            return f"draft {state.scratch['drafts']} of {state.task['x']}, after {state.last and state.last.text}"

        class critic(Role):
            def __init__(self, *, wanted: int = 2) -> None:
                self.wanted = wanted

            async def act(self, state, tools):
                state.metrics["drafts"] = state.scratch["drafts"]
                if state.scratch["drafts"] == self.wanted:
                    return Turn("fine", end="agreement", data={"marks": [1, 2]})
                return Turn("again", reasoning="hm", tool_calls=[{"id": "c"}])
        """,
    )
    row = await run_one(team_spec(file, **PAIR), tmp_path, x="row")
    assert texts(row) == [
        ("writer", "draft 1 of row, after None"),
        ("critic", "again"),
        ("writer", "draft 2 of row, after again"),
        ("critic", "fine"),
    ]
    assert (row.status, row.termination, row.metrics) == ("ok", "agreement", {"drafts": 2})
    assert row.request == {"task": {"x": "row"}}
    again, fine = row.history[1], row.history[3]
    assert (again.reasoning, again.tool_calls, again.data) == ("hm", [{"id": "c"}], None)
    assert (fine.reasoning, fine.tool_calls, fine.data) == (None, None, {"marks": [1, 2]})
    assert 0 <= row.history[0].at_s <= row.history[3].at_s <= row.took_s
    more = await run_one(team_spec(file, **PAIR, roles={"critic": {"options": {"wanted": 3}}}), tmp_path / "b", x="row")
    assert more.metrics == {"drafts": 3}


async def test_rows_and_trials_have_states_of_their_own(tmp_path: Path) -> None:
    code = """
        async def alone(state, tools):
            await asyncio.sleep(0.01)
            state.scratch["n"] = state.scratch.get("n", 0) + 1
            return f"{state.id} {state.index} {state.trial} {state.seed} {state.turns} {state.scratch['n']}"
    """
    spec = team_spec(team_file(tmp_path, code), seed=7, order=["alone"], repeat=False)
    found = await run(spec, tmp_path, work({"x": 1}, {"x": 2}, trials=2))
    assert [row.history[0].text for row in found] == ["0 0 0 7 0 1", "0 0 1 8 0 1", "1 1 0 7 0 1", "1 1 1 8 0 1"]
    assert {row.termination for row in found} == {"end"}


async def test_a_role_may_say_nothing(tmp_path: Path) -> None:
    row = await one(tmp_path, "async def alone(state, tools): return None")
    assert (row.history, row.termination) == ([], "end")


async def test_a_model_s_response_is_a_turn(tmp_path: Path) -> None:
    code = """
        async def alone(state, tools):
            return await tools.llm([{"role": "user", "content": tools.prompt(extra=state.turns)}], temperature=0.5)
    """
    role = {"prompt": "Say {{ x }}{{ extra }}", "sampling": {"max_tokens": 9}}
    spec = team_spec(team_file(tmp_path, code), order=["alone"], repeat=False, roles={"alone": role})

    def answer(body: Body) -> dict[str, Any]:
        calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
        return {"content": echo(body), "reasoning_content": "because", "tool_calls": calls}

    async with FakeEngine(answer) as engine:
        row = await run_one(spec, tmp_path, engine.url, x="it")
        (asked,) = engine.requests
    assert (asked["max_tokens"], asked["temperature"], asked["messages"][0]["content"]) == (9, 0.5, "Say it0")
    (entry,) = row.history
    assert (entry.text, entry.reasoning) == ("Say it0", "because")
    assert entry.tool_calls
    assert entry.tool_calls[0]["function"]["name"] == "f"
    (call,) = entry.calls
    assert (call.name, call.endpoint, call.attempts, call.replayed) == ("llm", engine.url, 1, False)
    assert call.usage["prompt_tokens"] == row.tokens["prompt_tokens"] == 2
    assert entry.took_s >= call.took_s > 0


async def test_each_step_has_a_seed_of_its_own_and_the_same_each_time(tmp_path: Path) -> None:
    code = """
        async def alone(state, tools):
            for _ in range(2):
                await tools.llm([{"role": "user", "content": "same"}])
            return Turn("x", end="over") if state.turns == 1 else "x"
    """
    spec = team_spec(team_file(tmp_path, code), order=["alone"], ends=["alone"])
    async with FakeEngine() as engine:
        for folder in ("a", "b"):
            await run(spec, tmp_path / folder, work({}, trials=2), engine.url)
        seeds = sorted(body["seed"] for body in engine.requests)
    assert len(set(seeds)) == 8
    assert seeds[::2] == seeds[1::2]


async def test_scores(tmp_path: Path) -> None:
    code = """
        async def alone(state, tools):
            state.scores["number"] = await tools.score("number", "it is 4")
            try:
                await tools.score("other", "4")
            except Exception as error:
                return str(error)
    """
    scorers = [{"kind": "number", "reference": "{{ x }}"}]
    spec = team_spec(team_file(tmp_path, code), order=["alone"], repeat=False, scorers=scorers)
    row = await run_one(spec, tmp_path, x="4")
    assert row.scores == {"number": Score([1.0], ["4"])}
    assert row.history[0].text == "there is no scorer 'other' in agents.scorers (number)"


# --- how a row ends ---------------------------------------------------------------------------------------------------

ASKS = """
    async def alone(state, tools):
        await tools.llm([{"role": "user", "content": "one two three four"}])
        return "asked"
"""


@pytest.mark.parametrize(
    ("limits", "termination", "turns"),
    [
        ({"turns": 3}, "max_turns", 3),
        ({"tokens": 9}, "max_tokens", 2),
        ({"cost_usd": 0.00001}, "max_cost", 2),
        ({"tokens": 1000, "turns": 1}, "max_turns", 1),
    ],
)
async def test_limits(tmp_path: Path, limits: dict[str, Any], termination: str, turns: int) -> None:
    price = {"input_per_million": 1, "output_per_million": 1}
    agents = {"order": ["alone"], "ends": ["alone"], "limits": limits}
    spec = team_spec(team_file(tmp_path, ASKS), price=price, **agents)
    async with FakeEngine() as engine:
        row = await run_one(spec, tmp_path, engine.url)
    assert (row.status, row.termination, len(row.history)) == ("ok", termination, turns)
    assert row.tokens == {"prompt_tokens": 4 * turns, "completion_tokens": 4 * turns, "cached_prompt_tokens": 0}


async def test_a_row_that_ends_by_itself_with_its_last_tokens_has_ended_by_itself(tmp_path: Path) -> None:
    spec = team_spec(team_file(tmp_path, ASKS), order=["alone"], repeat=False, limits={"tokens": 1})
    async with FakeEngine() as engine:
        row = await run_one(spec, tmp_path, engine.url)
    assert row.termination == "end"


@pytest.mark.parametrize("where", ["await asyncio.sleep(60)", "await tools.llm([{'role': 'user', 'content': 'x'}])"])
async def test_the_limit_of_seconds_wherever_the_row_is(tmp_path: Path, where: str) -> None:
    code = f"""
        async def alone(state, tools):
            if state.turns < 2:
                return "fast"
            {where}
    """
    spec = team_spec(team_file(tmp_path, code), order=["alone"], ends=["alone"], limits={"seconds": 0.3})
    async with FakeEngine(latency_s=60) as engine:
        row = await run_one(spec, tmp_path, engine.url)
    assert (row.status, row.termination, len(row.history)) == ("ok", "max_seconds", 2)
    assert 0.3 <= row.took_s < 5


async def test_a_turn_that_takes_too_long_is_an_error(tmp_path: Path) -> None:
    code = "async def alone(state, tools): await asyncio.sleep(60)"
    row = await one(tmp_path, code, roles={"alone": {"timeout_s": 0.3}})
    assert (row.status, row.termination) == ("error", "error")
    assert row.error is not None
    assert row.error.type == "timeout"
    assert row.error.message == "alone took more than 0.3 s for a turn (agents.roles.alone.timeout_s)"


async def test_what_a_request_takes_is_no_turn_s_time(tmp_path: Path) -> None:
    spec = team_spec(team_file(tmp_path, ASKS), order=["alone"], repeat=False, roles={"alone": {"timeout_s": 0.2}})
    async with FakeEngine(latency_s=0.6) as engine:
        row = await run_one(spec, tmp_path, engine.url)
    assert row.termination == "end"


async def test_a_turn_that_takes_its_timeout_for_something_else(tmp_path: Path) -> None:
    """The time out of one turn mustn't be taken for that of a later one."""
    code = """
        async def alone(state, tools):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                return "took it"
    """
    spec = team_spec(
        team_file(tmp_path, code),
        order=["alone"],
        ends=["alone"],
        roles={"alone": {"timeout_s": 0.2}},
        limits={"turns": 100, "seconds": 0.5},
    )
    row = await run_one(spec, tmp_path)
    assert row.termination == "max_seconds"


# --- many rows --------------------------------------------------------------------------------------------------------


async def test_rows_are_admitted_at_once_and_never_more_than_may_be(tmp_path: Path) -> None:
    code = """
        now, most = 0, 0

        async def alone(state, tools):
            global now, most
            now += 1
            most = max(most, now)
            await asyncio.sleep(0.02)
            now -= 1
            return str(most)
    """
    spec = team_spec(team_file(tmp_path, code), {"max_in_flight": 10}, order=["alone"], repeat=False)
    began = time.monotonic()
    found = await run(spec, tmp_path, work(*({} for _ in range(200))))
    assert len(found) == 200
    assert max(int(row.history[0].text) for row in found) == 10
    assert time.monotonic() - began < 8, "20 rounds of 0.02 s"


async def test_the_first_answer_ends_up_with_its_own_row(tmp_path: Path) -> None:
    code = """
        async def alone(state, tools):
            said = await tools.llm([{"role": "user", "content": f"row {state.id} turn {state.turns}"}])
            return Turn(said.text[0], end="over" if state.turns == 2 else None)
    """
    spec = team_spec(team_file(tmp_path, code), order=["alone"], ends=["alone"])
    async with FakeEngine(latency_s=lambda body: 0.001 * (hash(json.dumps(body)) % 20)) as engine:
        found = await run(spec, tmp_path, work(*({} for _ in range(50))), engine.url)
    assert [[entry.text for entry in row.history] for row in found] == [
        [f"row {index} turn {turn}" for turn in range(3)] for index in range(50)
    ]
    assert all(isinstance(row, AgentRow) for row in found)
