from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from matrix.client.breaker import FIRST_OPEN_S, LONGEST_OPEN_S, OPENS_AFTER, PROBE_S, Breaker


def state(breaker: Breaker, now: float) -> str:
    """What a request meets now."""
    if not breaker.open_s:
        return "closed"
    return "open" if now < breaker.until else "half-open"


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker()
    assert breaker.failed(now, now, unreachable=True)
    return breaker


def test_failures_in_a_row_open_it() -> None:
    breaker = Breaker()
    for number in range(OPENS_AFTER - 1):
        assert not breaker.failed(number, number)
    assert state(breaker, 10) == "closed"
    assert breaker.failed(10, 9)
    assert state(breaker, 10) == "open"


def test_a_success_starts_the_count_anew() -> None:
    breaker = Breaker()
    for number in range(10 * OPENS_AFTER):
        assert not breaker.failed(number, number)
        if number % (OPENS_AFTER - 1) == 0:
            breaker.succeeded()
    assert state(breaker, 100) == "closed"


def test_one_that_cannot_be_reached_opens_it_at_once() -> None:
    assert state(opened(), 0) == "open"


def test_half_open_after_its_time_and_one_probe_decides() -> None:
    breaker = opened()
    assert state(breaker, FIRST_OPEN_S - 0.01) == "open"
    assert state(breaker, FIRST_OPEN_S) == "half-open"
    breaker.probe(FIRST_OPEN_S)
    assert state(breaker, FIRST_OPEN_S) == "open", "for the next one"
    breaker.succeeded()
    assert state(breaker, FIRST_OPEN_S) == "closed"


def test_each_probe_that_fails_doubles_the_time_up_to_a_limit() -> None:
    breaker, now, times = opened(), 0.0, []
    for _ in range(8):
        now = breaker.until
        breaker.probe(now)
        assert breaker.failed(now, now, unreachable=True)
        times.append(breaker.until - now)
    assert times[:3] == [1, 2, 4]
    assert times[3:] == [LONGEST_OPEN_S] * 5
    breaker.succeeded()
    breaker.failed(now, now, unreachable=True)
    assert breaker.until - now == FIRST_OPEN_S, "once it closed all is forgotten"


def test_what_was_sent_before_it_opened_is_old_news() -> None:
    breaker = Breaker()
    breaker.failed(10, 10, unreachable=True)
    until = breaker.until
    for _ in range(1000):
        assert not breaker.failed(10.1, 5)
    assert breaker.until == until


def test_a_probe_that_says_nothing_is_joined_by_another() -> None:
    breaker = opened()
    breaker.probe(1)
    assert state(breaker, 1 + PROBE_S - 0.01) == "open"
    assert state(breaker, 1 + PROBE_S) == "half-open"


@given(st.lists(st.tuples(st.floats(0, 10), st.sampled_from(["fail", "unreachable", "succeed", "probe"])), max_size=60))
def test_whatever_happens_it_lets_something_through_in_time(events: list[tuple[float, str]]) -> None:
    breaker, now = Breaker(), 0.0
    for after, what in events:
        now += after
        if what == "succeed":
            breaker.succeeded()
            assert state(breaker, now) == "closed"
        elif what == "probe":
            if state(breaker, now) == "half-open":
                breaker.probe(now)
        else:
            breaker.failed(now, now, unreachable=what == "unreachable")
        assert state(breaker, now + PROBE_S) != "open"
        assert (breaker.open_s == 0) == (state(breaker, now) == "closed")
        assert breaker.open_s <= LONGEST_OPEN_S
