"""The reward of a conversation, as a task's evaluation criteria demand it.

Each criterion gives 0 or 1; the reward is the product of those in `reward_basis`. A conversation that was cut short
gets 0. Natural-language assertions need a judge: without one they are left out of the product, and named.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matrix.agents.teams.tau2.conversation import Message, calls, opening
from matrix.agents.teams.tau2.domain import Domain
from matrix.agents.teams.tau2.environment import World
from matrix.agents.teams.tau2.kit import ToolError, parsed

DB, ENV_ASSERTION, ACTION, COMMUNICATE, NL_ASSERTION = "DB", "ENV_ASSERTION", "ACTION", "COMMUNICATE", "NL_ASSERTION"

COMPLETED = ("user_stop", "transfer", "agent_stop")
"""Terminations of conversations that are graded. All others get 0, as one that the user gives up as out of scope."""

_BASIS = (DB, COMMUNICATE)
"""For tasks that name none."""


@dataclass(frozen=True, slots=True)
class Grade:
    """What came of it.

    Attributes:
        reward: 0 or 1.
        basis: Criteria that count.
        criteria: All criteria that were looked at, 0 or 1 each.
        missed: What wasn't met, in words.
        unjudged: Criteria of the basis that nobody judged.
    """

    reward: float
    basis: list[str] = field(default_factory=list)
    criteria: dict[str, float] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)
    unjudged: list[str] = field(default_factory=list)


def assertions(task: Mapping[str, Any]) -> list[str]:
    """The task's natural-language assertions, if they count."""
    criteria = task.get("evaluation_criteria") or {}
    return (criteria.get("nl_assertions") or []) if NL_ASSERTION in _basis(criteria) else []


def graded(
    domain: Domain,
    task: Mapping[str, Any],
    messages: Sequence[Message],
    termination: str,
    judged: Sequence[bool] | None = None,
) -> Grade:
    """Grade a conversation.

    Args:
        domain: Its domain.
        task: A row's columns.
        messages: The conversation, its opening included.
        termination: Why it ended.
        judged: What a judge says of each natural-language assertion; None: there is no judge.
    """
    if termination not in COMPLETED:
        return Grade(0.0, missed=[f"ended by {termination}"])
    criteria = task.get("evaluation_criteria")
    if not criteria:
        return Grade(1.0)
    world = World(domain, task)
    world.replay(messages)
    missed = {
        DB: _database(domain, task, world),
        ENV_ASSERTION: _env_assertions(criteria, world),
        ACTION: _actions(criteria, messages),
        COMMUNICATE: _communicated(criteria, messages),
    }
    said = assertions(task)
    if judged is not None or not said:
        missed[NL_ASSERTION] = [text for text, met in zip(said, judged or (), strict=True) if not met]
    basis = _basis(criteria)
    return Grade(
        reward=0.0 if any(missed.get(name) for name in basis) else 1.0,
        basis=basis,
        criteria={name: 0.0 if missed[name] else 1.0 for name in missed},
        missed=[f"{name}: {text}" for name in missed for text in missed[name]],
        unjudged=[name for name in basis if name not in missed],
    )


def _basis(criteria: Mapping[str, Any]) -> list[str]:
    return list(criteria.get("reward_basis") or _BASIS)


def _database(domain: Domain, task: Mapping[str, Any], world: World) -> list[str]:
    """Whether the databases are as the expected actions leave them, whichever way was taken."""
    criteria = task["evaluation_criteria"]
    if criteria.get("actions") is None and criteria.get("env_assertions") is None:
        return []
    gold = World(domain, task)
    gold.replay(opening(task))
    for action in criteria.get("actions") or ():
        gold.call(action.get("requestor", "assistant"), action["name"], action["arguments"])
    expected, got = gold.changes(), world.changes()
    return [
        f"{table} {key}"
        for side in expected
        for table in sorted({*expected[side], *got[side]})
        for key in sorted({*expected[side].get(table, ()), *got[side].get(table, ())})
        if expected[side].get(table, {}).get(key) != got[side].get(table, {}).get(key)
    ]


def _env_assertions(criteria: Mapping[str, Any], world: World) -> list[str]:
    missed = []
    for assertion in criteria.get("env_assertions") or ():
        name, arguments = assertion["func_name"], assertion["arguments"]
        try:
            holds = world.function(assertion["env_type"], name, arguments) == assertion.get("assert_value", True)
        except ToolError:
            holds = False
        if not holds:
            missed.append(f"{name}({json.dumps(arguments)})")
    return missed


def _actions(criteria: Mapping[str, Any], messages: Sequence[Message]) -> list[str]:
    """Expected actions that nobody took, be it with an error."""
    taken: list[tuple[str, dict[str, Any]]] = []
    for _, name, written in calls(messages):
        try:
            taken.append((name, parsed(written)))
        except ToolError:
            continue
    return [
        f"{action['name']}({json.dumps(action['arguments'])})"
        for action in criteria.get("actions") or ()
        if not any(_is_same(action, name, arguments) for name, arguments in taken)
    ]


def _is_same(action: Mapping[str, Any], name: str, arguments: Mapping[str, Any]) -> bool:
    compared = action.get("compare_args")
    if compared is None:
        # The call's own: arguments that it leaves out aren't missed. So it is in tau2-bench.
        compared = arguments.keys()
    wanted = {key: value for key, value in action["arguments"].items() if key in compared}
    return bool(name == action["name"] and wanted == {key: arguments[key] for key in arguments if key in compared})


def _communicated(criteria: Mapping[str, Any], messages: Sequence[Message]) -> list[str]:
    said = [message["content"].lower().replace(",", "") for message in messages if message["role"] == "assistant"]
    wanted = criteria.get("communicate_info") or ()
    return [info for info in wanted if not any(info.lower() in text for text in said)]
