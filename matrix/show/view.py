"""A row as a conversation, whatever made it: what a team's row and a plain request have in common for who reads them.

All that shows rows (terminal, page, tables) is made from this, so that they show the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from matrix.data.rows import AgentRow, Call, Response, Row, RowError

MAX_OPENING = 120
"""Longest opening."""

# Columns that usually hold what a row is about, best first.
_ASKED = ("question", "problem", "prompt", "instruction", "query", "input", "text", "task")

_SHORT_JSON = 100
"""JSON of so many characters stays on one line."""

Kind = Literal["text", "reasoning", "tool_call", "data"]


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of a turn.

    Attributes:
        kind: What it is; all but `text` and `reasoning` have a title.
        text: As people read it; JSON is laid out.
        title: Name of the tool that is called, or of the value.
    """

    kind: Kind
    text: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """What somebody said.

    Attributes:
        who: A role of the team; `task`; or `system`, `user`, ... and `answer` of a plain request.
        given: It was there before the run began: the task, the messages of a request.
        parts: What was said.
        note: What else there is to know, such as why an answer ended.
        at_s: Seconds from the row's begin to the turn's; None where nobody knows.
        took_s: Seconds that it took.
        calls: Of models and tools.
    """

    who: str
    given: bool
    parts: list[Part]
    note: str = ""
    at_s: float | None = None
    took_s: float | None = None
    calls: list[Call] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Figure:
    """What a scorer says of the row.

    Attributes:
        label: The scorer's.
        values: One for each answer.
        answers: What it read from each; None where there was nothing to read.
    """

    label: str
    values: list[float]
    answers: list[str | None]


@dataclass(frozen=True, slots=True)
class Conversation:
    """One row.

    Attributes:
        id: The row's name; it may repeat.
        index: Its place in the input.
        trial: Number of the trial.
        status: `ok` or `error`.
        ending: Why it ended: a team's termination, an answer's finish reason, or `error`.
        opening: The first words of what was asked.
        turns: In order; the first ones are given.
        said: How many of the turns are not given.
        tokens: `prompt`, `cached` (of them) and `completion`.
        took_s: Seconds from its begin to its end; of a plain request those of its last try.
        scores: By scorer.
        metrics: Figures that roles gave.
        error: Why it failed.
    """

    id: str
    index: int
    trial: int
    status: str
    ending: str
    opening: str
    turns: list[Turn]
    said: int
    tokens: dict[str, int]
    took_s: float
    scores: list[Figure]
    metrics: dict[str, float]
    error: RowError | None


def converse(row: Row) -> Conversation:
    """Lay a row out as a conversation."""
    given = list(_given(row.request))
    said = list(_said(row))
    usage = row.usage
    return Conversation(
        row.id,
        row.index,
        row.trial,
        row.status,
        ending_of(row),
        opening_of(row),
        [*given, *said],
        len(said),
        {
            "prompt": usage.get("prompt_tokens") or 0,
            "cached": (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
            "completion": usage.get("completion_tokens") or 0,
        },
        took_s_of(row),
        [Figure(label, score.values, score.answers) for label, score in row.scores.items()],
        row.metrics if isinstance(row, AgentRow) else {},
        row.error,
    )


def ending_of(row: Row) -> str:
    """Why a row ended: a team's termination, else the first answer's finish reason, or `error`."""
    if isinstance(row, AgentRow):
        return row.termination
    if row.response is None:
        return "error" if row.error else ""
    return next(iter(row.response.finish_reason), None) or ""


def took_s_of(row: Row) -> float:
    """Seconds that a row took; of a plain request those of its last try."""
    if isinstance(row, AgentRow):
        return row.took_s
    return row.response.latency_s if row.response else 0.0


def opening_of(row: Row) -> str:
    """The first words of what was asked, on one line."""
    task = row.request.get("task")
    words = " ".join((_asked(task) if isinstance(task, Mapping) else prompt_of(row.request)).split())
    return words if len(words) <= MAX_OPENING else f"{words[: MAX_OPENING - 3]}..."


def prompt_of(request: Mapping[str, Any]) -> str:
    """What a plain request asks: the content of its last user message, or its prompt; empty if there is neither."""
    users = [message.get("content") for message in request.get("messages", []) if message.get("role") == "user"]
    return _texts(users[-1]) if users else plain(request.get("prompt", request.get("code", "")))


def _asked(task: Mapping[str, Any]) -> str:
    texts = {name: value for name, value in task.items() if isinstance(value, str) and value.strip()}
    return next((texts[name] for name in _ASKED if name in texts), "") or next(iter(texts.values()), plain(task))


def _given(request: Mapping[str, Any]) -> Iterator[Turn]:
    if isinstance(task := request.get("task"), Mapping):
        yield Turn("task", True, _values(task))
    for message in request.get("messages", []):
        yield Turn(str(message.get("role")), True, list(_message(message)), note=str(message.get("tool_call_id") or ""))
    for name in ("prompt", "code", "stdin", "test"):
        if name in request:
            yield Turn(name, True, [Part("text", plain(request[name]))])


def _message(message: Mapping[str, Any]) -> Iterator[Part]:
    content = message.get("content")
    # A server may have refused it for its form, so that nothing is sure of it.
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, dict) and part.get("type") != "text":
            kind = str(part.get("type"))
            yield Part("data", plain(part.get(kind)), kind)
        elif part:
            yield Part("text", plain(part["text"] if isinstance(part, dict) and "text" in part else part))
    yield from _tool_calls(message.get("tool_calls"))


def _said(row: Row) -> Iterator[Turn]:
    if isinstance(row, AgentRow):
        for entry in row.history:
            parts = _parts(entry.reasoning, entry.text, entry.tool_calls)
            parts += _values(entry.data or {})
            yield Turn(entry.agent, False, parts, "", entry.at_s, entry.took_s, entry.calls)
    elif row.response is not None:
        yield from _answers(row.response)


def _answers(response: Response) -> Iterator[Turn]:
    call = Call("llm", response.latency_s, response.usage, response.endpoint, response.attempts)
    count = len(response.text)
    for number, text in enumerate(response.text):
        reasoning = response.reasoning_content[number] if response.reasoning_content else None
        tool_calls = response.tool_calls[number] if response.tool_calls else None
        ended = response.finish_reason[number] or ""
        yield Turn(
            "answer" if count == 1 else f"answer {number + 1} of {count}",
            False,
            [*_parts(reasoning, text, tool_calls), *_values(_beside_stdout(response.executed or {}))],
            note=ended,
            # One request gave all of them.
            took_s=response.latency_s if number == 0 else None,
            calls=[call] if number == 0 else [],
        )


def _beside_stdout(executed: Mapping[str, Any]) -> dict[str, Any]:
    """What else there is to tell of a program: what went wrong, its other outputs."""
    shown = ("exception", "failure", "signal", "stderr", "files", "files_left_out")
    return {name: executed[name] for name in shown if executed.get(name)}


def _parts(reasoning: str | None, text: str, tool_calls: Sequence[Mapping[str, Any]] | None) -> list[Part]:
    parts = [Part("reasoning", reasoning)] if reasoning else []
    if text:
        parts.append(Part("text", text))
    return [*parts, *_tool_calls(tool_calls)]


def _tool_calls(tool_calls: Sequence[Mapping[str, Any]] | None) -> Iterator[Part]:
    for call in tool_calls or []:
        function = call.get("function") or {}
        yield Part("tool_call", _arguments(function.get("arguments", "")), str(function.get("name", "")))


def _arguments(arguments: object) -> str:
    """A model's arguments laid out, or as they came where they are no JSON."""
    if not isinstance(arguments, str):
        return plain(arguments)
    try:
        return plain(orjson.loads(arguments))
    except orjson.JSONDecodeError:
        return arguments


def _values(values: Mapping[str, Any]) -> list[Part]:
    return [Part("data", plain(value), name) for name, value in values.items()]


def _texts(content: object) -> str:
    if not isinstance(content, list):
        return plain(content or "")
    return "\n".join(str(part.get("text")) for part in content if part.get("type") == "text")


def plain(value: object) -> str:
    """A value as people read it: text as it is, all else as JSON."""
    if isinstance(value, str):
        return value
    short = orjson.dumps(value, str).decode()
    return short if len(short) <= _SHORT_JSON else orjson.dumps(value, str, orjson.OPT_INDENT_2).decode()
