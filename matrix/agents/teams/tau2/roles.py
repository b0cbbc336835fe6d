"""The roles: a user who is simulated, an agent with tools, the environment that does what they call, and a grader.

Their names in a team are fixed: user, agent, environment, grader. The environment begins, since a task may.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from matrix.agents.role import Role
from matrix.agents.state import State, Turn
from matrix.agents.teams.tau2 import conversation as talk
from matrix.agents.teams.tau2.conversation import AGENT, ENVIRONMENT, GRADER, USER, Message
from matrix.agents.teams.tau2.domain import load_domain
from matrix.agents.teams.tau2.environment import World
from matrix.agents.teams.tau2.kit import Requestor, Result
from matrix.agents.teams.tau2.reward import Grade, assertions, graded
from matrix.agents.tools import Tools
from matrix.data.rows import Response
from matrix.errors import DataError

STOP, TRANSFER, OUT_OF_SCOPE = "###STOP###", "###TRANSFER###", "###OUT-OF-SCOPE###"

# Of two in one message the first one here counts.
_USER_ENDS = {OUT_OF_SCOPE: "out_of_scope", STOP: "user_stop", TRANSFER: "transfer"}

_NEXT: dict[Requestor, str] = {"assistant": AGENT, "user": USER}


class User(Role):
    """Plays the user of the task's scenario.

    Args:
        data: Folder of the domain.
        domain: Name of its tools; None: the folder's name.
    """

    def __init__(self, *, data: str, domain: str | None = None) -> None:
        self._domain = load_domain(data, domain)
        self._specs = self._domain.specs("user")

    async def act(self, state: State, tools: Tools) -> Turn:
        """Say something, call a tool, or end the conversation."""
        prompt = tools.prompt(scenario=talk.scenario(state.task), has_tools=bool(self._specs))
        messages = talk.user_view(talk.conversation(state.history))
        fields = {"tools": self._specs} if self._specs else {}
        response = await tools.llm([{"role": "system", "content": prompt}, *messages], **fields)
        turn = _turn(response, state.turns, AGENT, "user_error")
        if not turn.tool_calls:
            ends = next((reason for token, reason in _USER_ENDS.items() if token in turn.text), None)
            return _ended(turn, ends) if ends else turn
        return turn


class Agent(Role):
    """Helps the user by the domain's policy, with its tools.

    Args:
        data: Folder of the domain.
        domain: Name of its tools; None: the folder's name.
        may_stop: Whether the agent may end the conversation, by ###STOP###. In tau2-bench only the user does.
    """

    def __init__(self, *, data: str, domain: str | None = None, may_stop: bool = False) -> None:
        self._domain = load_domain(data, domain)
        self._specs = self._domain.specs("assistant")
        self._may_stop = may_stop

    async def act(self, state: State, tools: Tools) -> Turn:
        """Say something to the user, or call tools."""
        prompt = tools.prompt(policy=self._domain.policy)
        messages = talk.agent_view(talk.conversation(state.history))
        response = await tools.llm([{"role": "system", "content": prompt}, *messages], tools=self._specs)
        turn = _turn(response, state.turns, USER, "agent_error")
        if self._may_stop and not turn.tool_calls and STOP in turn.text:
            return _ended(turn, "agent_stop")
        return turn


class Environment(Role):
    """Opens the conversation, and does what agent and user call.

    Args:
        data: Folder of the domain.
        domain: Name of its tools; None: the folder's name.
        max_errors: Calls that may fail; as many end the conversation, as `too_many_errors`.
    """

    def __init__(self, *, data: str, domain: str | None = None, max_errors: int = 10) -> None:
        self._domain = load_domain(data, domain)
        self._max_errors = max_errors

    async def act(self, state: State, tools: Tools) -> Turn:
        """Begin, or answer the tool calls before."""
        del tools
        if not state.history:
            # A row that a limit ends before it is graded has this reward: in tau2-bench such a conversation gets 0.
            state.metrics |= {"reward": 0.0, "tool_errors": 0.0}
            return self._open(state)
        messages = talk.conversation(state.history)
        side, results = self._answered(state.task, messages)
        state.metrics["tool_errors"] = errors = state.metrics["tool_errors"] + _errors(results)
        turn = Turn("\n".join(result["content"] for result in results), next=_NEXT[side], data={"results": results})
        if len(results) == 1:
            # Long results aren't kept twice.
            del results[0]["content"]
        return _ended(turn, "too_many_errors") if errors >= self._max_errors else turn

    def _open(self, state: State) -> Turn:
        messages = talk.opening(state.task)
        last = messages[-1]
        if last.get("tool_calls"):
            side, results = self._answered(state.task, messages)
            messages += [{"role": "tool", **result} for result in results]
            to = _NEXT[side]
        elif last["role"] == "tool":
            to = _NEXT[last["requestor"]]
        else:
            to = USER if last["role"] == "assistant" else AGENT
        return Turn(next=to, data={"opening": messages})

    def _answered(self, task: dict[str, Any], messages: list[Message]) -> tuple[Requestor, list[Message]]:
        world = World(self._domain, task)
        world.replay(messages[:-1])
        side: Requestor = messages[-1]["role"]
        return side, [_result(side, call, world) for call in messages[-1]["tool_calls"]]


class Grader(Role):
    """Says what the conversation is worth.

    Args:
        data: Folder of the domain.
        domain: Name of its tools; None: the folder's name.
        judge: Have the role's app judge natural-language assertions where they count.
    """

    def __init__(self, *, data: str, domain: str | None = None, judge: bool = False) -> None:
        self._domain = load_domain(data, domain)
        self._judge = judge

    async def act(self, state: State, tools: Tools) -> Turn:
        """End the row with its reward."""
        messages = talk.conversation(state.history)
        termination = str(((state.last and state.last.data) or {}).get("termination"))
        said = assertions(state.task)
        judged = await _judged(said, messages, tools) if self._judge and said else None
        grade = graded(self._domain, state.task, messages, termination, judged)
        state.metrics["reward"] = grade.reward
        state.metrics["unjudged"] = float(bool(grade.unjudged))
        state.metrics |= {
            f"reward_{name.lower()}": grade.criteria[name] for name in grade.basis if name in grade.criteria
        }
        return Turn(_summary(grade), end=termination, data={"grade": asdict(grade)})


def _turn(response: Response, number: int, to: str, error: str) -> Turn:
    text, reasoning = response.text[0], response.reasoning_content[0] if response.reasoning_content else None
    tool_calls = response.tool_calls[0] if response.tool_calls else []
    if tool_calls:
        return Turn(text, ENVIRONMENT, tool_calls=talk.named(tool_calls, number), reasoning=reasoning)
    turn = Turn(text, to, reasoning=reasoning)
    return turn if text.strip() else _ended(turn, error)


def _ended(turn: Turn, termination: str) -> Turn:
    turn.next, turn.data = GRADER, {**(turn.data or {}), "termination": termination}
    return turn


def _result(side: Requestor, call: dict[str, Any], world: World) -> Message:
    result: Result = world.call(side, call["function"]["name"], call["function"]["arguments"])
    return {
        "tool_call_id": call["id"],
        "name": call["function"]["name"],
        "requestor": side,
        "error": result.error,
        "content": result.content,
    }


def _errors(results: list[Message]) -> int:
    return sum(result["error"] for result in results)


async def _judged(said: list[str], messages: list[Message], tools: Tools) -> list[bool]:
    """Ask a model of each assertion whether it holds."""
    verdict = {
        "type": "object",
        "properties": {"assertion": {"type": "string"}, "reason": {"type": "string"}, "met": {"type": "boolean"}},
        "required": ["assertion", "reason", "met"],
        "additionalProperties": False,
    }
    schema = {
        "type": "object",
        "properties": {"results": {"type": "array", "items": verdict}},
        "required": ["results"],
        "additionalProperties": False,
    }
    prompt = tools.prompt(transcript=talk.transcript(messages), assertions=said)
    wanted = {"type": "json_schema", "json_schema": {"name": "verdicts", "strict": True, "schema": schema}}
    response = await tools.llm([{"role": "user", "content": prompt}], response_format=wanted)
    try:
        results = [bool(result["met"]) for result in json.loads(response.text[0])["results"]]
    except (ValueError, TypeError, LookupError) as error:
        raise DataError(f"the judge's answer can't be read: {response.text[0]!r:.200}") from error
    if len(results) != len(said):
        raise DataError(f"the judge says {len(results)} things of {len(said)} assertions")
    return results


def _summary(grade: Grade) -> str:
    parts = [f"reward {grade.reward:g}"]
    parts += [f"missed {text}" for text in grade.missed]
    parts += [f"not judged: {', '.join(grade.unjudged)}"] if grade.unjudged else []
    return "; ".join(parts)
