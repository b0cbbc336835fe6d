"""A sample of rows, for people to read."""

from __future__ import annotations

import heapq
from hashlib import blake2b

from matrix.data.rows import Row, RowKey


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


def _hash(key: RowKey) -> int:
    return int.from_bytes(blake2b(f"{key.trial} {key.index}".encode(), digest_size=8).digest(), "big")
