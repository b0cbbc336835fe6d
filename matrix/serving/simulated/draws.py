"""Random quantities of a simulation, drawn from the distributions that the spec names."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

from matrix.spec.engine import Distribution

Draw = Callable[[Random], float]


def sampler(of: Distribution) -> Draw:
    """Return what draws from a distribution.

    Parameters are chosen so that what is drawn has the mean and the standard deviation of the spec, before it is
    brought between `min` and `max`.
    """
    draw = _unbounded(of)
    low, high = of.min, math.inf if of.max is None else of.max
    if of.kind == "constant":
        fixed = min(max(of.mean, low), high)
        return lambda _: fixed
    return lambda random: min(max(draw(random), low), high)


def _unbounded(of: Distribution) -> Draw:
    mean, std = of.mean, of.std
    if of.kind == "uniform":
        half = std * math.sqrt(3)
        return lambda random: random.uniform(mean - half, mean + half)
    if of.kind == "normal":
        return lambda random: random.gauss(mean, std)
    if of.kind == "exponential" and mean:
        return lambda random: random.expovariate(1 / mean)
    if of.kind == "lognormal" and mean:
        variance = math.log1p((std / mean) ** 2)
        mu, sigma = math.log(mean) - variance / 2, math.sqrt(variance)
        return lambda random: random.lognormvariate(mu, sigma)
    if of.kind == "gamma" and mean and std:
        shape, scale = (mean / std) ** 2, std**2 / mean
        return lambda random: random.gammavariate(shape, scale)
    return lambda _: mean
