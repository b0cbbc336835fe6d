"""What people get to read of the rows that are sampled, in a table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from matrix.data.rows import AgentRow, Row
from matrix.show.text import plain_text
from matrix.show.view import prompt_of

MAX_CHARS = 4000
"""Longest text in a cell."""


def tabulate(rows: list[Row]) -> tuple[list[str], list[list[Any]]]:
    """Lay rows out as a table: columns, and a list of cells per row.

    A team's rows are shown as conversations. Of several answers to a request the first one is shown, with its own
    scores.
    """
    labels = _names(row.scores for row in rows)
    if teams := [row for row in rows if isinstance(row, AgentRow)]:
        return _of_teams(teams, labels)
    columns = ["id", "trial", "status", "prompt", "text", *(f"scores/{label}" for label in labels), "error"]
    return columns, [
        [
            row.id,
            row.trial,
            row.status,
            _cut(prompt_of(row.request)),
            _cut(row.response.text[0]) if row.response else None,
            *_scores(row, labels),
            _error(row),
        ]
        for row in rows
    ]


def _of_teams(rows: list[AgentRow], labels: list[str]) -> tuple[list[str], list[list[Any]]]:
    metrics = _names(row.metrics for row in rows)
    columns = ["id", "trial", "status", "termination", "turns", "conversation"]
    columns += [*(f"metrics/{name}" for name in metrics), *(f"scores/{label}" for label in labels)]
    return [*columns, "tokens", "took_s", "error"], [
        [
            row.id,
            row.trial,
            row.status,
            row.termination,
            len(row.history),
            _cut(plain_text(row)),
            *(row.metrics.get(name) for name in metrics),
            *_scores(row, labels),
            row.tokens.get("prompt_tokens", 0) + row.tokens.get("completion_tokens", 0),
            row.took_s,
            _error(row),
        ]
        for row in rows
    ]


def _names(of_rows: Iterable[Iterable[str]]) -> list[str]:
    return sorted({name for names in of_rows for name in names})


def _scores(row: Row, labels: list[str]) -> list[float | None]:
    return [row.scores[label].values[0] if label in row.scores else None for label in labels]


def _error(row: Row) -> str | None:
    return _cut(f"{row.error.type}: {row.error.message}") if row.error else None


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS]}... ({len(text) - MAX_CHARS} characters more)"
