"""A run's rows as lines of a table, one at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice

from matrix.data.rows import AgentRow, Row
from matrix.show.text import Span, harmless
from matrix.show.totals import Totals
from matrix.show.view import ending_of, opening_of, took_s_of

_HEADS = ("id", "trial", "status", "termination", "turns", "tokens", "seconds", "asked")
_RIGHT = {"trial", "turns", "tokens", "seconds"}
_WIDEST = 40
"""Of a column but the last; a longer value stands out."""
_MEASURED = 1000
"""Rows that decide how wide columns are."""


def table(rows: Iterable[Row], width: int) -> Iterator[Span]:
    """The table; nothing for no rows.

    Args:
        rows: They are taken one at a time, but for the first ones.
        width: Where lines end; 0: the last column is left whole.
    """
    left = iter(rows)
    first = [_cells(row) for row in islice(left, _MEASURED)]
    if not first:
        return
    sizes = [min(_WIDEST, max(map(len, column))) for column in zip(_HEADS, *first, strict=True)]
    yield Span(f"{_line(_HEADS, sizes, width)}\n", "bold")
    for cells in chain(first, map(_cells, left)):
        yield Span(f"{_line(cells, sizes, width)}\n", "red" if cells[2] == "error" else "")


def totals_lines(totals: Totals) -> Iterator[Span]:
    """What all rows come to."""
    failed = sum(totals.errors.values())
    yield from _named("rows", f"{totals.rows:,}" + (f", {failed:,} of them with an error" if failed else ""))
    yield from _named("termination", _counts(totals.endings.most_common()))
    if failed:
        yield from _named("errors", _counts(totals.errors.most_common()))
    for what, means in (("scores", totals.scores), ("metrics", totals.metrics)):
        if means:
            yield from _named(what, ", ".join(f"{harmless(name)} {mean.value:.4g}" for name, mean in means.items()))
    yield from _named("tokens", f"{totals.prompt_tokens:,} prompt, {totals.completion_tokens:,} completion")
    turns = f"{totals.turns.value:.1f} turns, " if totals.turns.count else ""
    yield from _named("mean row", f"{turns}{totals.took_s.value:.1f} s")


def _cells(row: Row) -> tuple[str, ...]:
    usage = row.usage
    return (
        _on_one_line(row.id),
        str(row.trial),
        row.status,
        _on_one_line(ending_of(row)),
        str(len(row.history)) if isinstance(row, AgentRow) else str(len(row.response.text) if row.response else 0),
        str((usage.get("prompt_tokens") or 0) + (usage.get("completion_tokens") or 0)),
        f"{took_s_of(row):.1f}",
        harmless(opening_of(row)),
    )


def _on_one_line(text: str) -> str:
    return harmless(" ".join(text.split()))


def _line(cells: Iterable[str], sizes: list[int], width: int) -> str:
    whole = "  ".join(
        cell.rjust(size) if name in _RIGHT else cell.ljust(size)
        for name, cell, size in zip(_HEADS, cells, sizes, strict=True)
    ).rstrip()
    return whole if not width or len(whole) <= width else f"{whole[: width - 1]}…"


def _counts(counts: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{harmless(name) or 'none'} {count:,}" for name, count in counts)


def _named(name: str, value: str) -> Iterator[Span]:
    yield Span(f"{name:12} ", "dim")
    yield Span(f"{value}\n")
