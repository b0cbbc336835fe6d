"""Figures over all rows of a run, counted while they pass by: those of a run that goes on are in no summary yet."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from matrix.data.means import Mean
from matrix.data.rows import AgentRow, Row
from matrix.show.view import ending_of, took_s_of


@dataclass(slots=True)
class Totals:
    """What the rows so far come to.

    Attributes:
        rows: How many.
        errors: How many of them failed, by type.
        endings: How many ended in which way.
        scores: Mean value by scorer.
        metrics: Mean by name.
        turns: Of teams: turns of a row.
        took_s: Seconds of a row.
        prompt_tokens: In all.
        completion_tokens: In all.
    """

    rows: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)
    scores: dict[str, Mean] = field(default_factory=dict)
    metrics: dict[str, Mean] = field(default_factory=dict)
    turns: Mean = field(default_factory=Mean)
    took_s: Mean = field(default_factory=Mean)
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, row: Row) -> None:
        """Count a row."""
        self.rows += 1
        self.endings[ending_of(row)] += 1
        self.took_s.add(took_s_of(row))
        self.prompt_tokens += row.usage.get("prompt_tokens") or 0
        self.completion_tokens += row.usage.get("completion_tokens") or 0
        if row.error is not None:
            self.errors[row.error.type] += 1
        for label, score in row.scores.items():
            for value in score.values:
                self.scores.setdefault(label, Mean()).add(value)
        if isinstance(row, AgentRow):
            self.turns.add(len(row.history))
            for name, metric in row.metrics.items():
                self.metrics.setdefault(name, Mean()).add(metric)
