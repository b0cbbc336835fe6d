"""Which rows a person gets to read, and what of them."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from matrix.data.rows import Row, RowKey

MAX_CHARS = 4000
"""Longest text in a cell."""


class Samples:
    """A uniform sample of the rows that it is shown.

    It keeps the rows whose keys have the smallest hashes ("bottom-k"). So it doesn't matter in which order rows finish
    (the first N would be the ones with the shortest answers), and all jobs of a sweep show the same rows, ready to be
    compared side by side.

    Args:
        size: Rows to keep.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._ranks: list[tuple[int, RowKey]] = []
        self._rows: dict[RowKey, Row] = {}

    def add(self, row: Row) -> None:
        """Keep the row if it belongs to the sample; a key that is kept already gets the newer row."""
        if row.key in self._rows:
            self._rows[row.key] = row
            return
        heapq.heappush(self._ranks, (-_hash(row.key), row.key))
        self._rows[row.key] = row
        if len(self._ranks) > self._size:
            _, largest = heapq.heappop(self._ranks)
            del self._rows[largest]

    def rows(self) -> list[Row]:
        """The sample in the order of the input."""
        return sorted(self._rows.values(), key=lambda row: (row.index, row.trial))


def tabulate(rows: list[Row]) -> tuple[list[str], list[list[Any]]]:
    """Lay rows out as a table: columns, and a list of cells per row.

    Of several answers to a request the first one is shown, with its own scores.
    """
    labels = sorted({label for row in rows for label in row.scores})
    columns = ["id", "trial", "status", "prompt", "text", *(f"scores/{label}" for label in labels), "error"]
    return columns, [
        [
            row.id,
            row.trial,
            row.status,
            _cut(_prompt(row.request)),
            _cut(row.response.text[0]) if row.response else None,
            *(row.scores[label].values[0] if label in row.scores else None for label in labels),
            _cut(f"{row.error.type}: {row.error.message}") if row.error else None,
        ]
        for row in rows
    ]


def _hash(key: RowKey) -> int:
    return int.from_bytes(blake2b(f"{key.trial} {key.index}".encode(), digest_size=8).digest(), "big")


def _prompt(request: Mapping[str, Any]) -> str:
    """Content of the last user message; its text parts where it has several; empty if there is none."""
    users = [message["content"] for message in request.get("messages", []) if message["role"] == "user"]
    content = users[-1] if users else ""
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part["type"] == "text")


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS]}... ({len(text) - MAX_CHARS} characters more)"
