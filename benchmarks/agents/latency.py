"""Latencies that are drawn, and what the best of all schedulers would make of them. Standard library only."""

from __future__ import annotations

import heapq
import math
from random import Random
from statistics import NormalDist

MEDIAN_S, P99_S = 1.0, 6.0
SIGMA = math.log(P99_S / MEDIAN_S) / NormalDist().inv_cdf(0.99)
"""Of the lognormal distribution with that median and 99th percentile."""
MEAN_S = MEDIAN_S * math.exp(SIGMA**2 / 2)
STD_S = MEAN_S * math.sqrt(math.expm1(SIGMA**2))
HOPS = 5
"""Turns of a row."""

# Its quantiles in no order: a draw mustn't cost what is measured.
_SIZE = 65_536
_DRAWS = [MEDIAN_S * math.exp(NormalDist(0, SIGMA).inv_cdf((rank + 0.5) / _SIZE)) for rank in range(_SIZE)]
Random(0).shuffle(_DRAWS)


def draw(number: int, turn: int) -> float:
    """Seconds that a turn of a row takes, the same in each contestant."""
    return _DRAWS[(number * 7919 + turn * 104_729) % _SIZE]


def ideal(rows: int, in_flight: int) -> tuple[list[float], float]:
    """The seconds from the begin at which turns end when a row begins the moment one before it ends, at no cost.

    Returns:
        Of all turns in the order in which they end, and when the last row begins: until then all places are taken.
    """
    free = [0.0] * min(in_flight, rows)
    ends, now = [], 0.0
    for number in range(rows):
        now = begun = heapq.heappop(free)
        for turn in range(HOPS):
            now += draw(number, turn)
            ends.append(now)
        heapq.heappush(free, now)
    return sorted(ends), begun
