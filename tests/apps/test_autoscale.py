"""How many replicas an app should have, without a clock or a cluster."""

from __future__ import annotations

import pytest

from matrix.apps.autoscale import Autoscaler
from matrix.spec import Replicas


def scaler(**limits: float) -> Autoscaler:
    given = {"min": 1, "max": 4, "target_in_flight": 10, "upscale_delay_s": 5, "downscale_delay_s": 20, **limits}
    return Autoscaler(Replicas.model_validate(given), 1)


def play(what: Autoscaler, load: list[tuple[float, float]]) -> list[tuple[float, int]]:
    """Feed (time, outstanding); return (time, replicas) where it asked for a change."""
    asked = [(now, what.desired(outstanding, now)) for now, outstanding in load]
    return [(now, number) for now, number in asked if number is not None]


def test_a_load_that_stays_adds_replicas_after_the_delay() -> None:
    assert play(scaler(), [(now, 35) for now in range(10)]) == [(5, 4)]


def test_a_spike_adds_none() -> None:
    load = [(0, 35), (1, 35), (2, 3), (3, 35), (4, 35), (5, 3)]
    assert play(scaler(), [(float(now), float(n)) for now, n in load]) == []


def test_it_goes_down_to_the_highest_that_was_wanted_meanwhile() -> None:
    what = scaler(upscale_delay_s=0)
    assert play(what, [(0, 40)]) == [(0, 4)]
    assert play(what, [(1, 5), (10, 15), (20, 5), (21, 5)]) == [(21, 2)]


def test_to_zero_and_back_at_once() -> None:
    what = scaler(min=0)
    assert play(what, [(0, 0), (19, 0), (20, 0)]) == [(20, 0)]
    assert play(what, [(21, 0), (22, 1)]) == [(22, 1)]


def test_never_beyond_its_limits() -> None:
    what = scaler(upscale_delay_s=0)
    assert play(what, [(0, 1000)]) == [(0, 4)]
    assert play(what, [(float(now), 0) for now in range(1, 23)]) == [(21, 1)]


def test_what_was_asked_for_is_asked_for_again() -> None:
    assert [now for now, _ in play(scaler(), [(float(now), 5) for now in range(70)])] == [30, 60]


@pytest.mark.parametrize(
    ("given", "expected"), [(3, (3, 3, False)), ({"min": 0, "max": 2}, (0, 2, True)), ({"max": 1}, (1, 1, False))]
)
def test_the_spec_takes_a_number_or_limits(given: object, expected: tuple[int, int, bool]) -> None:
    spec = Replicas.model_validate(given)
    assert (spec.min, spec.max, spec.scales) == expected


@pytest.mark.parametrize("given", [0, -1, True, "2", {"min": 3, "max": 2}, {"max": 0}])
def test_the_spec_refuses_what_makes_no_sense(given: object) -> None:
    with pytest.raises(ValueError, match=r"replicas|min=3|greater"):
        Replicas.model_validate(given)


def test_what_the_limits_ask_for_is_done_at_once() -> None:
    limits = Replicas.model_validate({"min": 2, "max": 3, "target_in_flight": 10})
    assert play(Autoscaler(limits, 1), [(0, 0), (1, 0)]) == [(0, 2)]
    assert play(Autoscaler(limits, 5), [(0, 0), (1, 0)]) == [(0, 3)]
