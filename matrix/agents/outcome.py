"""What a row keeps of its state."""

from __future__ import annotations

from math import isfinite

from matrix.agents.state import State
from matrix.data.rows import Score
from matrix.pipelines.prompt import shortened


def figures(state: State) -> tuple[dict[str, float], dict[str, Score], str]:
    """Metrics and scores that the summary can work with, and what is wrong with others.

    None, and what is no number, such as the mean of nothing, are left out.
    """
    metrics: dict[str, float] = {}
    wrong = ""
    for name, value in state.metrics.items():
        try:
            number = float("nan") if value is None else float(value)
        except (TypeError, ValueError):
            wrong = wrong or f"metrics[{name!r}] is {shortened(repr(value))}, not a number"
        else:
            if isfinite(number):
                metrics[name] = number
    scores = {}
    for label, score in state.scores.items():
        if isinstance(score, Score):
            scores[label] = score
        else:
            wrong = wrong or f"scores[{label!r}] is {shortened(repr(score))}, not what tools.score gives"
    return metrics, scores, wrong
