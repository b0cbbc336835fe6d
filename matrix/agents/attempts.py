"""What earlier attempts at rows left: completed steps, and deaths that the rows are to blame for."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Container
from contextlib import suppress
from pathlib import Path

from matrix.agents.mark import Culprit, culprit, marked_writers
from matrix.agents.steps import StepIndex
from matrix.data.rows import RowError, RowKey
from matrix.data.work import Work
from matrix.errors import DataError


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
        self._deaths: defaultdict[RowKey, list[Culprit]] = defaultdict(list)
        if not folder.is_dir():
            return
        self._index.read(lambda key: key not in done)
        deaths = folder / "deaths.jsonl"
        if deaths.is_file():
            for line in deaths.read_text().splitlines():
                # A full disk may have left half a line.
                with suppress(ValueError):
                    key, hung = json.loads(line)
                    self._deaths[RowKey(*key)].append(Culprit(RowKey(*key), hung))
        for writer in marked_writers(folder):
            self.died(writer)

    def died(self, writer: str) -> RowKey | None:
        """Find out which row a process died of, and remember it; None: none was running.

        Raises:
            DataError: It can't be written down.
        """
        guilty = culprit(self._folder, writer)
        if guilty is not None:
            self._deaths[guilty.key].append(guilty)
            try:
                with (self._folder / "deaths.jsonl").open("a") as file:
                    # The line break comes first, too: the line before may be half a one.
                    file.write(f"\n{json.dumps(guilty)}\n")
            except OSError as error:
                raise DataError(f"{error.filename}: {error.strerror}") from error
        return guilty.key if guilty is not None else None

    def left(self, writer: str, wanted: Container[object]) -> None:
        """Take in the steps that a process left that has died."""
        self._index.read(lambda key: key in wanted, writer)

    def resumed(self, work: Work) -> Work:
        """The work with what is known of earlier attempts."""
        give_up = self._give_up(self._deaths[work.key]) if work.key in self._deaths else None
        steps = self._index.of(work.key)
        return work._replace(steps=tuple(steps), give_up=give_up) if steps or give_up else work

    def _give_up(self, deaths: list[Culprit]) -> RowError | None:
        hung = next((one.hung for one in deaths if one.hung), None)
        if hung is not None:
            # It would take as long each time.
            message = "it kept its process busy without a pause, and nothing but the end of that helped"
            return RowError("hangs", message, len(deaths), hung[-8000:])
        if len(deaths) < self._max_attempts:
            return None
        return RowError("died", f"its process died {len(deaths)} times while the row was running in it", len(deaths))

    def finished(self, key: RowKey) -> None:
        """The row is over."""
        self._index.finished(key)
