"""Gold conversations of tau2 tasks, as messages and as a server that plays user and agent."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from matrix.agents.teams.tau2.conversation import opening
from tests.checkout import ROOT

LIBRARY = "package:matrix.agents.teams.tau2/domains/library"

Task = Mapping[str, Any]
Action = Mapping[str, Any]

# What these two tasks want done stands in their assertions, not among their actions.
UNSAID: dict[str, list[Action]] = {
    "update_task_with_history_and_env_assertions": [
        {"name": "update_task_status", "arguments": {"task_id": "task_2", "status": "completed"}}
    ],
    "update_task_with_user_tools": [
        {"requestor": "user", "name": "dismiss_notification", "arguments": {"notification_id": "notif_1"}}
    ],
}
# In tau2-bench, too, nobody can solve it: it wants the notification dismissed, and the user's database as it was.
UNSOLVABLE = "update_task_with_user_tools"


def shared(domain: str) -> str:
    """The folder of one of tau2-bench's own domains; skips the test where the machine hasn't got it."""
    folder = ROOT.parent / "shared" / "data" / "tau2" / domain
    if not (folder / "db.json").is_file():
        pytest.skip("tau2-bench's data (../shared/data/tau2) isn't on this machine")
    return str(folder)


def tasks(data: str) -> list[dict[str, Any]]:
    """All tasks of a domain."""
    folder = ROOT / "matrix/agents/teams/tau2/domains/library" if data == LIBRARY else Path(data)
    found: list[dict[str, Any]] = json.loads((folder / "tasks.json").read_text())
    return found


def gold(task: Task) -> list[Action]:
    """What is to be done."""
    return [*(task["evaluation_criteria"].get("actions") or []), *UNSAID.get(task["id"], [])]


def said(task: Task) -> list[str]:
    """What is to be said."""
    return [f"Well: {info.upper()}." for info in task["evaluation_criteria"].get("communicate_info") or []]


def messages(task: Task, actions: Sequence[Action], texts: Sequence[str]) -> list[dict[str, Any]]:
    """A conversation in which these actions are taken and these texts said."""
    calls = [
        {"role": action.get("requestor", "assistant"), "content": "", "tool_calls": [_call(str(number), action)]}
        for number, action in enumerate(actions)
    ]
    return [*opening(task), *calls, *({"role": "assistant", "content": text} for text in texts)]


def without(items: Sequence[Any]) -> Iterator[tuple[int, list[Any]]]:
    """All ways to leave one out."""
    for number in range(len(items)):
        yield number, [*items[:number], *items[number + 1 :]]


def _call(name: str, action: Action) -> dict[str, Any]:
    function = {"name": action["name"], "arguments": json.dumps(action["arguments"])}
    return {"id": f"call_{name}", "type": "function", "function": function}


# Tells the player of the user which task it is; two of tau2-bench's have the same scenario.
NAMED = "agents.roles.user.prompt='<scenario>{{ id }}</scenario>'"


class Players:
    """Answers of a server that plays both sides by gold; the user names the task first. Needs NAMED."""

    def __init__(self, played: Sequence[Task]) -> None:
        self._tasks = {str(task["id"]): task for task in played}

    def __call__(self, body: dict[str, Any]) -> str | dict[str, Any]:
        system = body["messages"][0]["content"]
        is_user = "<scenario>" in system
        if is_user:
            task = self._tasks[system.removeprefix("<scenario>").removesuffix("</scenario>")]
        else:
            task = self._task_of(body["messages"])
        side = "user" if is_user else "assistant"
        mine = [action for action in gold(task) if action.get("requestor", "assistant") == side]
        done = sum(message["role"] == "tool" for message in body["messages"]) - self._before(task, side)
        answers = sum(message["role"] == "assistant" for message in body["messages"])
        if is_user and body["messages"][-1]["content"].startswith("Done"):
            answers = -1
        if done < len(mine) and (not is_user or answers < 0):
            return {"content": None, "tool_calls": [_call(str(done), mine[done])], "finish_reason": "tool_calls"}
        if is_user:
            is_over = answers < 0 or body["messages"][-1]["role"] == "tool"
            return "###STOP###" if is_over else f"Hello, it's about <{task['id']}>."
        return " ".join(["Done.", *said(task)])

    def _task_of(self, asked: list[dict[str, Any]]) -> Task:
        text = next(message["content"] for message in asked if "about <" in (message["content"] or ""))
        return self._tasks[text.partition("about <")[2].partition(">")[0]]

    @staticmethod
    def _before(task: Task, side: str) -> int:
        return sum(one["role"] == "tool" and one["requestor"] == side for one in opening(task))
