"""Against simulated servers in virtual time, with a caller that never runs out of requests unless it says so."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrix.client.concurrency import AdaptiveLimit
from tests.client.simulated import Batching, Server, Slots, around, drive


def constant(seconds: float) -> Slots:
    """A server that any number of requests doesn't slow down."""
    return Slots(math.inf, around(seconds, 0))


# Slow start


def test_it_doubles_each_time_until_the_maximum() -> None:
    limit = AdaptiveLimit(start=4, maximum=1000)
    record = drive(limit, constant(1.0), until=60)
    steps = list(dict.fromkeys(limit for _, limit in record.limits))
    assert steps[:9] == [4, 8, 16, 32, 64, 128, 256, 512, 1000]
    reached = next(at for at, limit in record.limits if limit == 1000)
    # A round trip passed over and one measured for each of eight doublings, and the first steps take at least 24 answers.
    assert reached < 30


@pytest.mark.parametrize("spread", [0, 0.3, 1.0])
@pytest.mark.parametrize("slots", [16, 48, 100, 500])
def test_it_finds_the_capacity_of_a_server_that_queues(slots: int, spread: float) -> None:
    for seed in range(3):
        server = Slots(slots, around(1.0, spread, seed))
        record = drive(AdaptiveLimit(maximum=2000), server, until=600)
        assert record.rate(300, 600) > 0.93 * slots, "nothing of it lies idle"
        assert 0.85 * slots < record.mean_limit(300) < max(2.2 * slots, 72), "and little waits in its queue"


def test_an_engine_that_queues_at_16_is_never_sent_2000() -> None:
    for seed in range(10):
        record = drive(AdaptiveLimit(maximum=2000), Slots(16, around(10.0, 0.5, seed)), until=7200)
        assert record.most_in_flight <= 256
        assert record.mean_limit(3600) < 100


def test_a_start_that_was_too_much_is_taken_back() -> None:
    record = drive(AdaptiveLimit(start=64), Slots(4, around(1.0, 0.2)), until=1200)
    assert record.mean_limit(600) < 12
    assert record.rate(600, 1200) > 0.95 * 4


def test_from_one_it_gets_there_as_well() -> None:
    for seed in range(10):
        record = drive(AdaptiveLimit(start=1), Slots(16, around(1.0, 0.5, seed)), until=600)
        assert record.rate(300, 600) > 0.9 * 16


@pytest.mark.parametrize(
    ("speed", "best"),
    # Tokens a second: half of the best with 10 and with 100 in flight.
    [(lambda jobs: 120 * jobs / (jobs + 10), 120), (lambda jobs: 5000 * jobs / (jobs + 100), 5000)],
)
def test_an_engine_that_batches_is_used_well(speed: Callable[[int], float], best: float) -> None:
    tokens = best / 6
    record = drive(AdaptiveLimit(), Batching(speed, around(tokens, 0.3)), until=2000)
    assert record.rate(1000, 2000) > 0.75 * best / tokens


# Refusals


@pytest.mark.parametrize("room", [10, 100, 700])
def test_it_comes_near_the_limit_of_a_server_that_refuses(room: int) -> None:
    record = drive(AdaptiveLimit(), Slots(math.inf, around(1.0, 0.3), room), until=600)
    assert 0.8 * room < record.mean_limit(300) <= room
    assert record.rate(300, 600) > 0.8 * room
    assert len(record.refused) < 0.02 * len(record.answered) + 100


def test_many_refusals_of_one_round_trip_are_one_cut() -> None:
    limit = AdaptiveLimit(start=100)
    for _ in range(100):
        limit.started(0.0)
    for number in range(100):
        limit.refused(1.0 + number / 1000, 0.0)
    assert limit.limit == 80
    limit.started(40.0)
    limit.refused(41.0, 40.0)
    assert limit.limit == 1, "one was in flight, and that was too many"


def test_a_cut_is_of_what_was_in_flight() -> None:
    limit = AdaptiveLimit(start=100)
    for _ in range(10):
        limit.started(0.0)
    limit.refused(1.0, 0.0)
    assert limit.limit == 8


def test_nothing_is_admitted_before_retry_after() -> None:
    limit = AdaptiveLimit(start=8)
    limit.started(0.0)
    limit.started(0.0)
    limit.refused(1.0, 0.0, retry_after_s=20)
    limit.refused(1.5, 0.0, retry_after_s=3)
    assert limit.paused_until == 21, "the longer one counts, though it came first"
    assert not limit.admits(20.9)
    assert limit.admits(21)


def test_a_server_that_shuts_for_a_while_is_not_asked_meanwhile() -> None:
    server = Slots(math.inf, around(1.0, 0.3))

    def shut() -> None:
        server.refusing_until = 130.0

    record = drive(AdaptiveLimit(), server, until=400, events=[(100.0, shut)])
    # What was sent in the 2 ms before the first refusal came back.
    assert server.asked_while_closed < 20
    assert record.rate(200, 400) > 0.8 * record.rate(50, 100), "and it recovers"


def test_refusals_without_retry_after_pause_longer_and_longer() -> None:
    limit = AdaptiveLimit(start=8, minimum=2)
    now, pauses = 0.0, []
    for _ in range(10):
        limit.started(now)
        limit.refused(now + 0.1, now)
        pauses.append(max(0.0, limit.paused_until - now - 0.1))
        now = max(now + 0.1, limit.paused_until) + 0.001
    assert pauses == pytest.approx([0, 0.5, 1, 2, 4, 8, 16, 30, 30, 30])
    limit.started(now)
    limit.succeeded(now + 1, now)
    limit.started(now + 1)
    limit.refused(now + 2, now + 1)
    assert limit.admits(now + 2), "a success between starts it anew"


def test_it_follows_a_server_that_changes() -> None:
    server = Slots(200, around(1.0, 0.3))

    def set_slots(slots: int) -> Callable[[], None]:
        return lambda: setattr(server, "slots", slots)

    events = [(300.0, set_slots(20)), (1500.0, set_slots(400))]
    record = drive(AdaptiveLimit(), server, until=3000, events=events)
    assert record.rate(150, 300) > 0.93 * 200
    assert record.mean_limit(1300, 1500) < 60
    assert record.rate(2500, 3000) > 0.85 * 400


# What says nothing


def test_a_limit_that_is_not_used_does_not_grow() -> None:
    record = drive(AdaptiveLimit(), constant(1.0), until=300, demand=16)
    assert {limit for _, limit in record.limits} == {32}


def test_an_outage_is_not_taken_for_saturation() -> None:
    server, limit = Slots(100, around(1.0, 0.3)), AdaptiveLimit()
    events = [(200.0, lambda: server.stand_still(60.0)), (260.0, limit.disturbed)]
    record = drive(limit, server, until=500, events=events)
    assert record.mean_limit(270, 300) == pytest.approx(record.mean_limit(170, 200), rel=0.3)
    assert record.rate(270, 500) > 0.93 * 100


# Fixed


@pytest.mark.parametrize("server", [constant(0.1), Slots(4, around(1.0, 1.0)), Slots(99, around(1.0, 0.3), 20)])
def test_a_fixed_number_stays(server: Server) -> None:
    limit = AdaptiveLimit(start=7, minimum=25, maximum=25)
    record = drive(limit, server, until=100)
    assert {limit for _, limit in record.limits} == {25}
    assert record.most_in_flight == 25
    assert record.answered


@pytest.mark.parametrize(("minimum", "maximum"), [(0, 10), (5, 4), (-1, -1)])
def test_limits_that_make_no_sense_are_refused(minimum: int, maximum: int) -> None:
    with pytest.raises(ValueError, match=f"minimum={minimum}"):
        AdaptiveLimit(minimum=minimum, maximum=maximum)


# Whatever happens

EVENTS = st.sampled_from(["succeeded", "refused", "refused for 5 s", "dropped", "disturbed", "nothing"])


def finish(limit: AdaptiveLimit, how: str, now: float, started_at: float) -> None:
    if how == "succeeded":
        limit.succeeded(now, started_at)
    elif how == "refused":
        limit.refused(now, started_at)
    elif how == "refused for 5 s":
        limit.refused(now, started_at, 5)
        assert not limit.admits(now + 4.9)
    else:
        limit.dropped(now)


@given(
    st.integers(1, 50),
    st.integers(0, 200),
    st.integers(1, 300),
    st.lists(st.tuples(st.floats(0, 30), st.integers(0, 400), EVENTS), max_size=80),
)
def test_invariants(minimum: int, more: int, start: int, events: list[tuple[float, int, str]]) -> None:
    maximum = minimum + more
    limit = AdaptiveLimit(start=start, minimum=minimum, maximum=maximum)
    now, flying = 0.0, list[float]()
    for after, number, what in events:
        now += after
        for _ in range(number):
            if limit.admits(now):
                limit.started(now)
                flying.append(now)
        before = limit.limit
        for _ in range(min(number, len(flying))):
            finish(limit, what, now, flying.pop(0))
        if what == "disturbed":
            limit.disturbed()
        assert limit.limit == before or what == "succeeded" or (what.startswith("refused") and limit.limit < before)
        assert minimum <= limit.limit <= maximum
        assert limit.in_flight == len(flying)
        assert limit.paused_until - now <= 30.001 or what == "refused for 5 s"
        assert limit.in_flight >= limit.limit or limit.admits(max(now, limit.paused_until)), "it never locks up"


@given(st.integers(1, 64), st.integers(1, 500), st.sampled_from([0, 0.3, 1.0]), st.integers(1, 10), st.integers(0, 99))
def test_every_server_is_kept_busy(start: int, slots: int, spread: float, room: int, seed: int) -> None:
    server = Slots(slots, around(1.0, spread, seed), slots * room)
    record = drive(AdaptiveLimit(start=start), server, until=30)
    assert record.answered
    assert max(b - a for a, b in zip(record.answered, record.answered[1:], strict=False)) < 20
