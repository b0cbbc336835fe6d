"""What earlier attempts at rows left: completed steps, and deaths that the rows are to blame for."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Container
from pathlib import Path

from matrix.agents.mark import culprit, marked_writers
from matrix.agents.steps import StepIndex
from matrix.data.rows import RowKey
from matrix.data.work import Work
from matrix.errors import DataError

_LINE = re.compile(r"^\[(\d+), (\d+)\]$", re.MULTILINE)


class PastAttempts:
    """Attempts at the rows of one run dir, from earlier starts and from this one.

    Args:
        folder: The folder `steps` of the run dir.
        max_attempts: Times that a process may die of a row.
        done: Keys of finished rows.
    """

    def __init__(self, folder: Path, max_attempts: int, done: Container[object]) -> None:
        self._folder, self._max_attempts = folder, max_attempts
        self._index = StepIndex(folder)
        self._deaths: Counter[RowKey] = Counter()
        if not folder.is_dir():
            return
        self._index.read(lambda key: key not in done)
        deaths = folder / "deaths.jsonl"
        if deaths.is_file():
            self._deaths.update(RowKey(*map(int, key)) for key in _LINE.findall(deaths.read_text()))
        for writer in marked_writers(folder):
            self.died(writer)

    def died(self, writer: str) -> RowKey | None:
        """Find out which row a process died of, and remember it; None: none was running.

        Raises:
            DataError: It can't be written down.
        """
        guilty = culprit(self._folder, writer)
        if guilty is not None:
            self._deaths[guilty] += 1
            try:
                with (self._folder / "deaths.jsonl").open("a") as file:
                    # The line break comes first, too: a full disk may have cut the line before.
                    file.write(f"\n{json.dumps(guilty)}\n")
            except OSError as error:
                raise DataError(f"{error.filename}: {error.strerror}") from error
        return guilty

    def left(self, writer: str, wanted: Container[object]) -> None:
        """Take in the steps that a process left that has died."""
        self._index.read(lambda key: key in wanted, writer)

    def resumed(self, work: Work) -> Work:
        """The work with what is known of earlier attempts."""
        deaths = self._deaths[work.key] if self._deaths else 0
        give_up = None
        if deaths >= self._max_attempts:
            give_up = f"its process died {deaths} times while the row was running in it"
        steps = self._index.of(work.key)
        return work._replace(steps=tuple(steps), give_up=give_up) if steps or give_up else work

    def finished(self, key: RowKey) -> None:
        """The row is over."""
        self._index.finished(key)
