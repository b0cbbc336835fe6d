"""A conversation as text: with styles for a terminal, or plain."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from matrix.data.rows import AgentRow, Call, Row, RowError
from matrix.show.view import Conversation, Figure, Part, Turn, converse

_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "bright_red", "bright_cyan", "bright_magenta")
"""Of the agents, in the order in which they first speak."""

# What a terminal could take for a command, and what hides text from who reads it; tabs and newlines are text.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class Span(NamedTuple):
    """A piece of text, with a style as rich names it; empty: none."""

    text: str
    style: str = ""


def harmless(text: str) -> str:
    """A text that does nothing to a terminal: models write escape sequences, too."""
    return _CONTROLS.sub(_seen, text)


def spans(row: Row) -> Iterator[Span]:
    """The whole conversation, for a terminal."""
    seen = converse(row)
    colours: dict[str, str] = {}
    yield Span(f"{harmless(seen.id)}", "bold")
    yield Span(f"  trial {seen.trial}, place {seen.index} of the input\n", "dim")
    number = 0
    for turn in seen.turns:
        number += not turn.given
        style = "bold" if turn.given else colours.setdefault(turn.who, _COLOURS[len(colours) % len(_COLOURS)])
        yield from _turn(turn, style, number)
    yield from _end(seen)


def plain_text(row: AgentRow) -> str:
    """The conversation without its figures, which have columns of their own in a table."""
    blocks = []
    for turn in converse(row).turns:
        said = [_titled(part) for part in turn.parts if part.text or part.title]
        blocks.append("\n".join([f"[{turn.who}]", *said]))
    return "\n\n".join(blocks)


def tokens_of(seen: Conversation) -> str:
    """Tokens in words."""
    cached = f" ({seen.tokens['cached']:,} cached)" if seen.tokens["cached"] else ""
    return f"{seen.tokens['prompt']:,} prompt{cached}, {seen.tokens['completion']:,} completion"


def _titled(part: Part) -> str:
    if part.kind == "reasoning":
        return f"(reasoning) {part.text}"
    if part.kind == "tool_call":
        return f"-> {part.title}({part.text})"
    between = "\n" if "\n" in part.text else " "
    return f"{part.title}:{between}{part.text}" if part.title else part.text


def _turn(turn: Turn, style: str, number: int) -> Iterator[Span]:
    yield Span("\n" if turn.given else f"\n{number} ", "dim")
    yield Span(harmless(turn.who), f"bold {style}")
    when = [f"at {turn.at_s:.1f} s"] if turn.at_s is not None else []
    took = [f"took {_seconds(turn.took_s)}"] if turn.took_s is not None else []
    yield Span("".join(f"  {said}" for said in (harmless(turn.note), ", ".join([*when, *took])) if said) + "\n", "dim")
    for part in turn.parts:
        yield from _part(part)
    for call in turn.calls:
        yield from _call(call)


def _part(part: Part) -> Iterator[Span]:
    text = harmless(part.text)
    if part.kind == "text":
        yield Span(_indented(text))
    elif part.kind == "reasoning":
        yield Span(_indented(text), "dim italic")
    elif part.kind == "tool_call":
        yield Span(f"  -> {harmless(part.title)}", "bold")
        yield Span(f"({text.replace(chr(10), chr(10) + '  ')})\n")
    else:
        yield Span(f"  {harmless(part.title)}:", "dim")
        yield Span(f"\n{_indented(text, '    ')}" if "\n" in text else f" {text}\n")


def _call(call: Call) -> Iterator[Span]:
    prompt, completion = call.usage.get("prompt_tokens") or 0, call.usage.get("completion_tokens") or 0
    facts = [
        _seconds(call.took_s),
        f"{prompt:,} + {completion:,} tokens" if call.usage else "",
        f"{call.attempts} tries" if call.attempts > 1 else "",
        call.endpoint or "",
    ]
    yield Span(f"  · {harmless(call.name)}: {', '.join(fact for fact in facts if fact)}", "dim")
    if call.replayed:
        yield Span("  replayed", "yellow")
    if call.error:
        yield Span(f"  {harmless(call.error)}", "red")
    yield Span("\n")


def _end(seen: Conversation) -> Iterator[Span]:
    yield Span("\n")
    yield Span(f"{seen.status}", "bold red" if seen.error else "bold green")
    yield Span(f"  {harmless(seen.ending)}\n" if seen.ending and seen.ending != seen.status else "\n")
    yield from _table("score", ((score.label, _score(score)) for score in seen.scores))
    yield from _table("metric", ((name, f"{value:g}") for name, value in seen.metrics.items()))
    yield Span("  tokens  ", "dim")
    yield Span(f"{tokens_of(seen)}\n")
    yield Span("  took    ", "dim")
    yield Span(f"{_seconds(seen.took_s)}\n")
    if seen.error:
        yield from _error(seen.error)


def _table(what: str, lines: Iterable[tuple[str, str]]) -> Iterator[Span]:
    for name, value in lines:
        yield Span(f"  {what:7} ", "dim")
        yield Span(f"{harmless(name)}: {value}\n")


def _score(score: Figure) -> str:
    return ", ".join(
        f"{value:g} ({'nothing to read' if answer is None else harmless(answer)})"
        for value, answer in zip(score.values, score.answers, strict=True)
    )


def _error(error: RowError) -> Iterator[Span]:
    tries = f" (after {error.attempts} tries)" if error.attempts > 1 else ""
    yield Span(f"  {harmless(error.type)}: {harmless(error.message)}{tries}\n", "red")
    if error.traceback:
        yield Span(_indented(harmless(error.traceback)), "dim")


def _seconds(seconds: float) -> str:
    return f"{seconds:.3f} s" if seconds < 1 else f"{seconds:,.1f} s"


def _indented(text: str, by: str = "  ") -> str:
    return "".join(f"{by}{line}\n" for line in text.rstrip("\n").split("\n"))


def _seen(control: re.Match[str]) -> str:
    """A control as a picture of it, or its number."""
    code = ord(control[0])
    return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else f"<U+{code:04X}>"
