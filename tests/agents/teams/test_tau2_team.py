"""The whole team, run by its config against a server that plays user and agent."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.agents.teams.tau2_play import LIBRARY, NAMED, UNSOLVABLE, Players, gold, shared, tasks
from tests.command import against, only_run_dir, rows, run, summary
from tests.fake_engine import FakeEngine

TEAM = ("agents=tau2", "model=api", "model.name=fake", "agents.limits.turns=60")
DATA = "agents.roles.environment.options.data"


def played(tmp_path: Path, answer: Callable[[Any], Any], *overrides: str) -> tuple[Path, FakeEngine]:
    with FakeEngine.in_thread(answer=answer) as engine:
        done = run(tmp_path, *TEAM, *against(engine.url), *overrides)
    assert done.returncode == 0, done.stderr
    return only_run_dir(tmp_path / "outputs"), engine


def is_user(body: dict[str, Any]) -> bool:
    return "<scenario>" in body["messages"][0]["content"]


def named(body: dict[str, Any]) -> str:
    """The task that the user plays; needs NAMED."""
    content: str = body["messages"][0]["content"]
    return content.removeprefix("<scenario>").removesuffix("</scenario>")


def call(name: str, arguments: str, call_id: str = "a") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def calling(*calls: dict[str, Any], content: str | None = None) -> dict[str, Any]:
    return {"content": content, "tool_calls": list(calls), "finish_reason": "tool_calls"}


@pytest.mark.parametrize("name", ["library", "mock", "retail"])
def test_players_who_know_the_gold_actions_get_1(tmp_path: Path, name: str) -> None:
    data = LIBRARY if name == "library" else shared(name)
    run_dir, engine = played(tmp_path, Players(tasks(data)), f"{DATA}={data}", NAMED)
    found = {row["id"]: row for row in rows(run_dir)}
    assert {row: found[row]["metrics"]["reward"] for row in found} == {
        task["id"]: float(task["id"] != UNSOLVABLE) for task in tasks(data)
    }
    assert {row["termination"] for row in found.values()} == {"user_stop"}
    actions = sum(len(gold(task)) for task in tasks(data))
    called = [one for row in found.values() for entry in row["history"] for one in entry["tool_calls"] or ()]
    assert len(called) == actions
    # Each answer was paid for once: no turn without one but those of environment and grader.
    spoken = [entry for row in found.values() for entry in row["history"] if entry["agent"] in {"user", "agent"}]
    assert len(engine.requests) == len(spoken)
    agents = summary(run_dir)["agents"]
    assert agents["grader"]["turns"] == len(found)
    assert summary(run_dir)["metrics"]["reward"]["count"] == len(found)


def test_each_side_sees_its_own_calls_only(tmp_path: Path) -> None:
    data = shared("mock")
    _, engine = played(tmp_path, Players(tasks(data)), f"{DATA}={data}", NAMED)
    for body in engine.requests:
        names = {spec["function"]["name"] for spec in body.get("tools", ())}
        roles = [message["role"] for message in body["messages"]]
        assert ("dismiss_notification" in names) == is_user(body)
        assert ("update_task_status" in names) != is_user(body)
        assert roles[0] == "system"
        assert body["max_tokens"] == 128
        for message in body["messages"][1:]:
            for one in message.get("tool_calls") or ():
                assert one["function"]["name"] in names


def test_how_conversations_end(tmp_path: Path) -> None:
    answers = {
        "renew": "###STOP###",
        "reserve": "Thanks! ###TRANSFER###",
        "fines": "###OUT-OF-SCOPE### ###STOP###",
        "reserved": "  ",
    }
    run_dir, _ = played(tmp_path, lambda body: answers[named(body)], NAMED)
    found = {row["id"]: row for row in rows(run_dir)}
    assert {name: row["termination"] for name, row in found.items()} == {
        "renew": "user_stop", "reserve": "transfer", "fines": "out_of_scope", "reserved": "user_error",
    }  # fmt: skip
    for row in found.values():
        assert [entry["agent"] for entry in row["history"]] == ["environment", "user", "grader"]
        assert row["metrics"]["reward"] == 0.0
    # Out of scope isn't graded at all.
    assert "reward_db" not in found["fines"]["metrics"]
    assert found["renew"]["metrics"]["reward_db"] == 0.0


@pytest.mark.parametrize("may_stop", [True, False])
def test_how_agents_and_limits_end_them(tmp_path: Path, may_stop: bool) -> None:
    def answer(body: dict[str, Any]) -> str:
        if is_user(body):
            said = body["messages"][-1]["content"]
            return "###STOP###" if "STOP" in said else f"It's about {named(body)}."
        about = body["messages"][-1]["content"]
        return {"It's about renew.": "", "It's about reserve.": "Bye ###STOP###"}.get(about, "Hm.")

    options = (f"agents.roles.agent.options.may_stop={may_stop}", "agents.limits.turns=7", "dataset.limit=3")
    run_dir, _ = played(tmp_path, answer, NAMED, *options)
    found = {row["id"]: row for row in rows(run_dir)}
    assert {name: row["termination"] for name, row in found.items()} == {
        "renew": "agent_error", "reserve": "agent_stop" if may_stop else "user_stop", "fines": "max_turns",
    }  # fmt: skip
    # A row that no grader sees has a reward, too.
    assert found["fines"]["metrics"] == {"reward": 0.0, "tool_errors": 0.0}


def test_bad_calls_are_answered_and_too_many_end_it(tmp_path: Path) -> None:
    script = iter(
        [
            calling(call("renew_loan", '{"loan_id":')),
            calling(call("renew_loan", "{}"), call("nope", "{}", "b"), content="Let me see."),
            calling(call("renew_loan", '{"loan_id": ["L1"]}')),
        ]
    )
    run_dir, engine = played(
        tmp_path,
        lambda body: "Hello" if is_user(body) else next(script),
        "agents.roles.environment.options.max_errors=4",
        "dataset.limit=1",
    )
    (row,) = rows(run_dir)
    assert (row["termination"], row["metrics"]["reward"], row["metrics"]["tool_errors"]) == (
        "too_many_errors",
        0.0,
        4.0,
    )
    user, *asked = [body["messages"] for body in engine.requests]
    assert user[0]["content"].count("Reason for call:\n") == 1
    assert "your tools" not in user[0]["content"]
    assert user[1:] == [{"role": "user", "content": "Hi! How can I help you today?"}]
    assert "# Library desk" in asked[0][0]["content"]
    # What isn't JSON isn't sent back to the server as a call: some refuse the whole conversation.
    assert json.loads(asked[1][-2]["tool_calls"][0]["function"]["arguments"]) == {}
    assert asked[1][-1]["content"].startswith("Error: The arguments are not JSON")
    assert [message["role"] for message in asked[2][-3:]] == ["assistant", "tool", "tool"]
    assert [message["tool_call_id"] for message in asked[2][-2:]] == ["a", "b"]
    assert asked[2][-1]["content"] == "Error: Tool 'nope' not found."


def test_a_judge_decides_where_assertions_count(tmp_path: Path) -> None:
    verdict = {"results": [{"assertion": "?", "reason": "It doesn't.", "met": False}]}
    players = Players(tasks(LIBRARY))
    judged: list[str] = []

    def answer(body: dict[str, Any]) -> Any:
        if "response_format" not in body:
            return players(body)
        judged.append(body["messages"][0]["content"])
        return json.dumps(verdict)

    run_dir, _ = played(tmp_path, answer, "agents.roles.grader.options.judge=true", NAMED)
    got = {row["id"]: row["metrics"] for row in rows(run_dir)}
    assert {name: metrics["reward"] for name, metrics in got.items()} == {
        "renew": 1.0, "reserve": 1.0, "fines": 1.0, "reserved": 0.0,
    }  # fmt: skip
    assert (got["reserved"]["reward_nl_assertion"], got["reserved"]["unjudged"]) == (0.0, 0.0)
    (prompt,) = judged
    assert "1. The agent says why the loan isn't renewed." in prompt
    assert "assistant: I found you, Ada." in prompt


def test_a_judge_that_cannot_be_read_is_an_error_of_the_row(tmp_path: Path) -> None:
    players = Players(tasks(LIBRARY))
    run_dir, _ = played(
        tmp_path,
        lambda body: "Yes." if "response_format" in body else players(body),
        "agents.roles.grader.options.judge=true",
        NAMED,
    )
    assert Counter(row["status"] for row in rows(run_dir)) == {"ok": 3, "error": 1}
    (failed,) = (row for row in rows(run_dir) if row["status"] == "error")
    assert "the judge's answer can't be read: 'Yes.'" in failed["error"]["message"]
