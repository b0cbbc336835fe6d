"""The messages of a conversation, from a row's history, and as each side sees them.

A message is a dict in OpenAI's form from the agent's point of view; `requestor` says whose tools a tool message is of.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from textwrap import indent
from typing import Any, TypeAlias

from matrix.agents.teams.tau2.kit import Requestor, ToolError, parsed
from matrix.data.rows import Entry

Message: TypeAlias = dict[str, Any]

USER, AGENT, ENVIRONMENT, GRADER = "user", "agent", "environment", "grader"
"""Names of the roles; the history is read by them."""

GREETING = "Hi! How can I help you today?"
"""What the agent says before anybody; a part of what the agent communicated."""

_SPEAKERS: dict[str, Requestor] = {USER: "user", AGENT: "assistant"}


def opening(task: Mapping[str, Any]) -> list[Message]:
    """The messages before the first turn: the task's, or a greeting."""
    given = (task.get("initial_state") or {}).get("message_history")
    if not given:
        return [{"role": "assistant", "content": GREETING}]
    return [_from_task(message) for message in given]


def conversation(history: Iterable[Entry]) -> list[Message]:
    """All messages so far."""
    messages: list[Message] = []
    for entry in history:
        if entry.agent == ENVIRONMENT:
            data = entry.data or {}
            messages += data.get("opening", [])
            results = data.get("results", [])
            messages += [{"role": "tool", "content": entry.text, **result} for result in results]
        elif entry.agent in _SPEAKERS:
            message: Message = {"role": _SPEAKERS[entry.agent], "content": entry.text}
            messages.append({**message, "tool_calls": entry.tool_calls} if entry.tool_calls else message)
    return messages


def calls(messages: Iterable[Message]) -> Iterator[tuple[Requestor, str, Any]]:
    """All tool calls: who asked, for which tool, with which arguments as they were written."""
    for message in messages:
        for call in message.get("tool_calls", ()):
            yield message["role"], call["function"]["name"], call["function"]["arguments"]


def agent_view(messages: Iterable[Message]) -> list[Message]:
    """What the agent sees: neither the user's tool calls nor their results."""
    return [_sendable(message, message["role"]) for message in messages if not _is_of(message, "user")]


def user_view(messages: Iterable[Message]) -> list[Message]:
    """What the user sees: neither the agent's tool calls nor their results, and with the roles swapped."""
    swapped = {"assistant": "user", "user": "assistant", "tool": "tool"}
    return [_sendable(message, swapped[message["role"]]) for message in messages if not _is_of(message, "assistant")]


def transcript(messages: Iterable[Message]) -> str:
    """What was said and done, for a judge."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


def named(tool_calls: Sequence[Mapping[str, Any]], turn: int) -> list[dict[str, Any]]:
    """Tool calls of a response, each with an id, which some servers leave out."""
    return [{**call, "id": call.get("id") or f"call_{turn}_{number}"} for number, call in enumerate(tool_calls)]


def scenario(task: Mapping[str, Any]) -> str:
    """What the user is told: who they are, and what they want."""
    given = task.get("user_scenario") or {}
    parts = {"Persona": given.get("persona"), "Instructions": _instructions(given.get("instructions"))}
    return "\n".join(f"{name}:\n{indent(text, '    ')}" for name, text in parts.items() if text)


def _instructions(given: object) -> str:
    if not isinstance(given, dict):
        return str(given or "")
    names = ("domain", "reason_for_call", "known_info", "unknown_info", "task_instructions")
    titles = {name: name.replace("_", " ").capitalize() for name in names}
    return "\n".join(f"{titles[name]}:\n{indent(given[name], '    ')}" for name in names if given.get(name))


def _is_of(message: Message, side: Requestor) -> bool:
    """Whether it is a tool call of that side, or the result of one."""
    if message["role"] == "tool":
        return bool(message["requestor"] == side)
    return message["role"] == side and bool(message.get("tool_calls"))


def _sendable(message: Message, role: str) -> Message:
    if role == "tool":
        return {"role": role, "tool_call_id": message["tool_call_id"], "content": message["content"]}
    if not message.get("tool_calls"):
        return {"role": role, "content": message["content"]}
    tool_calls = [
        {**call, "function": {**call["function"], "arguments": _object(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return {"role": role, "content": message["content"] or None, "tool_calls": tool_calls}


def _object(arguments: object) -> str:
    # vLLM refuses a whole conversation in which a model once wrote arguments that are no JSON object.
    try:
        return json.dumps(parsed(arguments))
    except ToolError:
        return "{}"


def _from_task(message: Mapping[str, Any]) -> Message:
    if message["role"] == "tool":
        return {
            "role": "tool",
            "content": message.get("content") or "",
            "tool_call_id": message["id"],
            "requestor": message.get("requestor", "assistant"),
        }
    tool_calls = [
        {
            "id": call["id"],
            "type": "function",
            "function": {"name": call["name"], "arguments": json.dumps(call["arguments"])},
        }
        for call in message.get("tool_calls") or ()
    ]
    said: Message = {"role": message["role"], "content": message.get("content") or ""}
    return {**said, "tool_calls": tool_calls} if tool_calls else said
