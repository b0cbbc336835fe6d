"""The rows of `paper.py`: what each has to do, one step after another, the same for every contestant.

A step asks the model for so many tokens, of which it makes one in 20 ms, or calls a tool in a slow container, which is
a sleep. Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

TOKEN_S = 0.02
Step = tuple[str, float]
"""`model` and tokens, or `tool` and seconds."""


def filtered(random: Random) -> list[Step]:
    """Web documents: a short answer filters nine of ten; a score and a question, longer ones, for what is left."""
    steps = [_model(random, 0.2)]
    if random.random() < 0.1:
        steps += [_model(random, 0.6), _model(random, 2.0)]
    return steps


def conversation(random: Random) -> list[Step]:
    """Two reasoners: four turns at the median, forty at the 99th percentile."""
    turns = max(1, round(_lognormal(random, 4, 40)))
    return [_model(random, 0.3) for _ in range(min(turns, 60))]


def containers(random: Random) -> list[Step]:
    """An agent with tools: a container that starts, then model and tool in turns, a tool call at times a long one."""
    steps: list[Step] = [("tool", 1.0)]
    for _ in range(random.randint(3, 9)):
        steps += [_model(random, 0.3), ("tool", min(_lognormal(random, 0.5, 5.0), 10.0))]
    return steps


SCENARIOS: dict[str, Callable[[Random], list[Step]]] = {
    "filtered": filtered,
    "conversation": conversation,
    "containers": containers,
}


def steps(scenario: str, number: int) -> list[Step]:
    """What a row has to do."""
    return SCENARIOS[scenario](Random(number))


def seconds(step: Step) -> float:
    """How long a step takes that nothing keeps waiting."""
    kind, amount = step
    return (amount - 1) * TOKEN_S if kind == "model" else amount


def _model(random: Random, median_s: float) -> Step:
    return "model", max(2, 1 + round(min(_lognormal(random, median_s, 4 * median_s), 8 * median_s) / TOKEN_S))


def _lognormal(random: Random, median: float, p99: float) -> float:
    return median * math.exp(random.gauss(0, math.log(p99 / median) / 2.326))
