"""A whole team at work: what its roles see, what its rows hold, and how they end."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from matrix.data.rows import AgentRow, Score
from tests.agents.small_teams import run, run_one, team_file, team_spec, texts, work
from tests.fake_engine import Body, FakeEngine, Fault, echo

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


async def test_an_exception_is_an_error_with_its_traceback(tmp_path: Path) -> None:
    code = """
        def helper(): return {}["nothing"]

        async def alone(state, tools):
            await tools.llm([{"role": "user", "content": "x"}])
            return helper()
    """
    spec = team_spec(team_file(tmp_path, code), order=["alone"], repeat=False)
    async with FakeEngine() as engine:
        row = await run_one(spec, tmp_path, engine.url)
    assert row.error is not None
    assert (row.error.type, row.error.message) == ("KeyError", "alone: 'nothing'")
    assert 'in helper\n    def helper(): return {}["nothing"]' in (row.error.traceback or "")
    assert [entry.agent for entry in row.history] == ["alone"], "what was paid for is told"
    assert row.history[0].calls[0].usage
    assert row.tokens["prompt_tokens"] == 1


@pytest.mark.parametrize(
    ("raises", "kind"),
    [
        ("raise SystemExit(3)", "SystemExit"),
        ("raise asyncio.CancelledError", "CancelledError"),
        ("raise ExceptionGroup('x', [ValueError('y')])", "ExceptionGroup"),
        ("raise StopIteration", "RuntimeError"),
        ("raise TimeoutError", "TimeoutError"),
        ("(lambda f: f(f))(lambda f: f(f))", "RecursionError"),
        ("return 5", "TypeError"),
        ("return Turn(next=5)", "route"),
        ("return Turn(next='nobody')", "route"),
        ("tools.prompt()", "data"),
        ("await tools.score('nothing', 'x')", "data"),
        ("await tools.llm([{'role': {1, 2}}])", "bad_request"),
        ("await tools.llm([{'role': {5: 6}}])", "bad_request"),
    ],
)
async def test_whatever_a_role_raises_is_its_row_s_error(tmp_path: Path, raises: str, kind: str) -> None:
    code = f"""
        async def alone(state, tools):
            if state.task["x"] == 1:
                {raises}
            return "fine"
    """
    role = {"prompt": "{{ nothing }}"}
    spec = team_spec(team_file(tmp_path, code), order=["alone"], repeat=False, roles={"alone": role})
    found = await run(spec, tmp_path, work({"x": 0}, {"x": 1}, {"x": 2}))
    assert [row.status for row in found] == ["ok", "error", "ok"]
    assert found[1].error is not None
    assert found[1].error.type == kind


async def test_a_task_of_a_role_that_is_cancelled_is_an_error(tmp_path: Path) -> None:
    code = """
        async def alone(state, tools):
            task = asyncio.ensure_future(asyncio.sleep(60))
            asyncio.get_running_loop().call_later(0.05, task.cancel)
            await task
    """
    row = await one(tmp_path, code)
    assert row.error is not None
    assert row.error.type == "CancelledError"


async def test_a_request_that_fails_for_good(tmp_path: Path) -> None:
    spec = team_spec(team_file(tmp_path, ASKS), order=["alone"], repeat=False)
    async with FakeEngine(fail=lambda _: Fault.http(400, "too long")) as engine:
        row = await run_one(spec, tmp_path, engine.url)
    assert row.error is not None
    assert (row.error.type, row.error.traceback) == ("http_400", None)
    assert "alone: " in row.error.message
    assert "too long" in row.error.message
    assert row.history[0].calls[0].error


async def test_a_role_may_take_a_failed_request_for_an_answer(tmp_path: Path) -> None:
    code = """
        async def alone(state, tools):
            try:
                await tools.llm([{"role": "user", "content": "x"}])
            except Exception as error:
                return type(error).__name__
    """
    spec = team_spec(team_file(tmp_path, code), order=["alone"], repeat=False)
    async with FakeEngine(fail=lambda _: Fault.http(400, "too long")) as engine:
        row = await run_one(spec, tmp_path, engine.url)
    assert texts(row) == [("alone", "RequestError")]


@pytest.mark.parametrize(
    "what",
    [
        "Turn(data={1: 2})",
        "Turn(data={'x': 2**70})",
        "Turn(chr(0xD800))",
        "state.metrics.update(x=2**70)",
        "state.task.update({1: 2})",
    ],
)
async def test_what_json_cannot_hold_is_an_error(tmp_path: Path, what: str) -> None:
    row = await one(tmp_path, f"async def alone(state, tools): return {what}")
    assert row.error is not None
    assert row.error.type == "data"


async def test_a_row_that_cannot_be_read(tmp_path: Path) -> None:
    from matrix.data.readers import BadRow
    from matrix.data.work import Work

    spec = team_spec(team_file(tmp_path, ASKS), order=["alone"], repeat=False)
    (row,) = await run(spec, tmp_path, [Work(BadRow("3", 3, "rows.jsonl:4", "is torn"), 0)])
    assert row.error is not None
    assert (row.status, row.index, row.error.type) == ("error", 3, "data")


async def test_no_rows(tmp_path: Path) -> None:
    assert await run(team_spec(team_file(tmp_path, ASKS), order=["alone"], repeat=False), tmp_path, []) == []


# --- steps ------------------------------------------------------------------------------------------------------------


async def test_tools_are_called_by_the_role_that_has_them(tmp_path: Path) -> None:
    code = """
        def add(a: int, b: int) -> int:
            return a + b

        async def alone(state, tools):
            call = {"id": "c7", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
            answer = await tools.answer(call)
            bad = await tools.call("add", {"a": "x", "b": 2})
            none = await tools.call("other", "{}")
            names = [spec["function"]["name"] for spec in tools.specs]
            await tools.llm([{"role": "user", "content": "x"}])
            return Turn(data={"answer": answer, "bad": bad, "none": none, "names": names})
    """
    spec = team_spec(
        team_file(tmp_path, code),
        order=["alone"],
        repeat=False,
        roles={"alone": {"tools": ["add"]}},
        tools={"add": "add"},
    )
    async with FakeEngine() as engine:
        row = await run_one(spec, tmp_path, engine.url)
        assert engine.requests[0]["tools"][0]["function"]["name"] == "add"
    (entry,) = row.history
    assert entry.data is not None
    assert entry.data["answer"] == {"role": "tool", "tool_call_id": "c7", "content": "3"}
    assert entry.data["names"] == ["add"]
    assert entry.data["bad"].startswith("error: ")
    assert entry.data["none"] == "error: there is no tool 'other'; there are: add"
    assert [(call.name, bool(call.error)) for call in entry.calls] == [("add", False), ("add", True), ("llm", False)]


HOLDS = """
    class alone(Role):
        async def act(self, state, tools):
            place = await tools.once("place", self.take, state.id)
            await tools.once("other", self.take, "x")
            note(f"act {place}")
            if state.task.get("fails"):
                raise ValueError("no")
            return place

        async def take(self, name):
            note(f"take {name}")
            return f"place {name}"

        async def release(self, state, held):
            note(f"release {state.id} {state.turns} {sorted(held.items())}")

    def note(text):
        with open(Path(__file__).with_name("notes"), "a") as file:
            file.write(text + chr(10))
"""


def notes(folder: Path) -> list[str]:
    return (folder / "notes").read_text().splitlines()


@pytest.mark.parametrize("fails", [False, True])
async def test_what_a_row_holds_is_given_back_once(tmp_path: Path, fails: bool) -> None:
    spec = team_spec(team_file(tmp_path, HOLDS), order=["alone"], repeat=False)
    row = await run_one(spec, tmp_path, fails=fails)
    assert row.status == ("error" if fails else "ok")
    assert notes(tmp_path) == [
        "take 0",
        "take x",
        "act place 0",
        f"release 0 {1 - fails} [('other', 'place x'), ('place', 'place 0')]",
    ]


@pytest.mark.parametrize("fails", ["raise ValueError('gone')", "await asyncio.sleep(60)", "raise SystemExit"])
async def test_giving_back_that_fails_or_hangs_costs_no_row(tmp_path: Path, fails: str) -> None:
    code = f"""
        class alone(Role):
            async def act(self, state, tools):
                return await tools.once("place", asyncio.sleep, 0)

            async def release(self, state, held):
                {fails}
    """
    row = await one(tmp_path, code, roles={"alone": {"timeout_s": 0.3}})
    assert (row.status, row.termination) == ("ok", "end")
    assert row.took_s < 5


async def test_a_row_that_holds_something_is_not_turned_away_at_the_gate(tmp_path: Path) -> None:
    """With the budget spent no more rows are begun, and those that are go on: they would hold it until a resume."""
    from tests.agents.small_teams import opened, written

    code = """
        class alone(Role):
            async def act(self, state, tools):
                await tools.once("place", asyncio.sleep, 0.3)
                return await tools.llm([{"role": "user", "content": "x"}])

            async def release(self, state, held):
                Path(__file__).with_name("notes").write_text("given back")
    """
    spec = team_spec(team_file(tmp_path, code), order=["alone"], repeat=False)
    async with FakeEngine() as engine, opened(spec, tmp_path, engine.url) as team:
        team.begin(work({})[0])
        await asyncio.sleep(0.1)
        for client in team._clients.values():
            client.gate.close()
        await team.run(iter(()))
    (row,) = written(tmp_path)
    assert row.status == "ok"
    assert notes(tmp_path) == ["given back"]


async def test_once_keeps_what_json_can_hold(tmp_path: Path) -> None:
    code = """
        async def give(): return {1: 2}

        async def alone(state, tools): return await tools.once("give", give)
    """
    row = await one(tmp_path, code)
    assert row.error is not None
    assert row.error.type == "data"


# --- fan-out ----------------------------------------------------------------------------------------------------------

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
