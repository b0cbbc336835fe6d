"""What is left to do: rows of the data set that have no result yet."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from matrix.data.readers import BadRow, Dataset
from matrix.data.rows import Example, RowError, RowKey


class Work(NamedTuple):
    """A row of the data set and the number of the trial, and what earlier attempts at it left.

    Attributes:
        message: The workflow as it was handed over by a peer; None: it begins.
        steps: Its completed steps, as they were journalled.
        give_up: Why nobody should try it again; None: it is to be worked on.
    """

    example: Example | BadRow
    trial: int
    message: bytes | None = None
    steps: tuple[bytes, ...] = ()
    give_up: RowError | None = None

    @property
    def key(self) -> RowKey:
        """The row's identity within its run dir."""
        return RowKey(self.example.index, self.trial)


def open_work(dataset: Dataset, trials: int, done: Collection[tuple[int, int]]) -> Iterator[Work]:
    """What is left to do, in order of the input.

    The trials of a row follow one another, so that they find its prompt in the engine's prefix cache.
    """
    for example in dataset.examples:
        for trial in range(trials):
            if (example.index, trial) not in done:
                yield Work(example, trial)
