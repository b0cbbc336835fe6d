"""What a run may cost: `workload.budget_usd`."""

from __future__ import annotations

from pathlib import Path

from matrix.data.sorting import read_rows
from matrix.run.console import log
from matrix.run.progress import Counts
from matrix.spec import RunSpec

BUDGET_EXIT_CODE = 3
"""What the process exits with when the budget ended the run: rows are missing."""


class Budget:
    """Counts what the run dir cost so far, earlier starts included.

    Args:
        spec: The run's spec; its check has seen to it that a budget comes with a price.
        rows: Folder of the row journal.

    Attributes:
        is_spent: Whether it is used up.
    """

    def __init__(self, spec: RunSpec, rows: Path) -> None:
        self.is_spent = False
        self._limit = spec.workload.budget_usd
        self._price = spec.model.price
        self._before = Counts()
        self._warned = False
        if self._limit is not None:
            for row in read_rows(rows):
                self._before.add(row)
            self.spend(Counts(), 0)

    def spend(self, counts: Counts, in_flight: int) -> bool:
        """Look at the counts of this start, and at what is in flight, which will cost as much as rows did so far.

        Returns:
            Whether they have just used the budget up.
        """
        if self._limit is None or self.is_spent:
            return False
        if counts.ok and not counts.prompt_tokens and not self._warned:
            self._warned = True
            log.warning("workload.budget_usd can't be kept: the server doesn't say how many tokens it used")
        spent = self._before.usd(self._price) + counts.usd(self._price)
        rows = self._before.rows + counts.rows
        self.is_spent = spent + in_flight * spent / max(rows, 1) >= self._limit
        if self.is_spent:
            way_out = "a higher budget and the same run.dir go on from here"
            said = "workload.budget_usd=%g is used up: %.4f USD, and %d requests in flight that are waited for (%s)"
            log.warning(said, self._limit, spent, in_flight, way_out)
        return self.is_spent
