"""Running means and spreads: sums that don't grow with the number of values."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(slots=True)
class Mean:
    """The mean of what was added; 0/1 values give it exactly."""

    count: int = 0
    total: float = 0.0

    def add(self, value: float) -> None:
        """Take a value in."""
        self.count += 1
        self.total += value

    @property
    def value(self) -> float:
        """The mean; 0 of nothing."""
        return self.total / self.count if self.count else 0.0


@dataclass(slots=True)
class Spread:
    """Running variance (Welford 1962): equal values give exactly 0."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        """Take a value in."""
        self.count += 1
        off = value - self.mean
        self.mean += off / self.count
        self.squares += off * (value - self.mean)

    @property
    def stderr(self) -> float | None:
        """Standard error of the mean."""
        return math.sqrt(self.squares / (self.count - 1) / self.count) if self.count > 1 else None
