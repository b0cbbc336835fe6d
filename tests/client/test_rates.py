from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrix.client.rates import Bucket, Rates, estimate_tokens


def spend_all(bucket: Bucket, amounts: list[float]) -> list[float]:
    """Spend each amount as soon as it may be; returns the times."""
    now, times = 0.0, []
    for amount in amounts:
        now += bucket.wait_s(now, amount)
        bucket.spend(now, amount)
        times.append(now)
    return times


def test_it_refills_smoothly() -> None:
    assert spend_all(Bucket(60), [1] * 4) == pytest.approx([0, 1, 2, 3])
    assert spend_all(Bucket(3), [1] * 4) == pytest.approx([0, 20, 40, 60])


def test_it_holds_one_second_and_no_more() -> None:
    bucket = Bucket(600)
    assert spend_all(bucket, [1] * 12)[:10] == [0] * 10
    assert bucket.wait_s(10_000, 10) == 0
    assert bucket.wait_s(10_000, 11) == 0, "it is full, more there never is"
    bucket.spend(10_000, 11)
    assert bucket.wait_s(10_000, 1) == pytest.approx(0.2), "but that is a debt"


def test_what_is_put_back_can_be_spent() -> None:
    bucket = Bucket(60)
    bucket.spend(0, 1)
    assert bucket.wait_s(0, 1) == pytest.approx(1)
    bucket.spend(0, -1)
    assert bucket.wait_s(0, 1) == 0


@pytest.mark.parametrize("per_minute", [0, -1, float("nan")])
def test_no_rate_at_all_is_refused(per_minute: float) -> None:
    with pytest.raises(ValueError, match="per_minute"):
        Bucket(per_minute)


@given(st.floats(0.5, 10_000), st.lists(st.floats(0.01, 50), min_size=1, max_size=300))
def test_no_minute_sees_more_than_its_limit_and_what_was_begun(per_minute: float, amounts: list[float]) -> None:
    times = spend_all(Bucket(per_minute), amounts)
    for first, at in enumerate(times):
        seen = sum(amount for amount, when in zip(amounts, times, strict=True) if at <= when < at + 60)
        assert seen <= per_minute + max(1.0, per_minute / 60) + max(amounts[first:]) + 0.01


@given(st.floats(0.5, 10_000), st.lists(st.floats(0, 1e6), max_size=50))
def test_it_never_waits_in_vain(per_minute: float, amounts: list[float]) -> None:
    bucket, now = Bucket(per_minute), 0.0
    for amount in amounts:
        now += bucket.wait_s(now, amount)
        assert bucket.wait_s(now, amount) == 0
        bucket.spend(now, amount)


def test_both_limits_hold() -> None:
    rates = Rates(requests_per_minute=60, tokens_per_minute=600)
    rates.spend(0, 5)
    assert rates.wait_s(0, 5) == pytest.approx(1), "requests are the scarcer thing"
    rates.spend(1, 30)
    assert rates.wait_s(2, 10) == pytest.approx(2), "and here tokens"
    assert not Rates(requests_per_minute=60).counts_tokens
    assert Rates().wait_s(0, 1e9) == 0


def test_usage_corrects_the_estimate() -> None:
    rates = Rates(tokens_per_minute=600)
    rates.spend(0, 100)
    assert rates.wait_s(0, 10) == pytest.approx(10)
    rates.correct(0, 100, 20)
    assert rates.wait_s(0, 10) == pytest.approx(2)
    rates.correct(0, 20, 0)
    assert rates.wait_s(0, 10) == 0


def test_one_that_was_not_sent_counts_for_nothing() -> None:
    rates = Rates(requests_per_minute=60, tokens_per_minute=600)
    rates.spend(0, 10)
    rates.take_back(0, 10)
    assert rates.wait_s(0, 10) == 0


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"messages": [{"role": "user", "content": "x" * 396}], "max_tokens": 50}, 150),
        ({"messages": [{"role": "user", "content": "x" * 396}], "max_completion_tokens": 50, "n": 3}, 250),
        ({"prompt": "x" * 400, "max_tokens": 1}, 101),
        ({"prompt": ["x" * 400, "x" * 400], "max_tokens": 1}, 201),
        ({"prompt": [1, 2, 3], "max_tokens": 7}, 10),
        ({"input": ["x" * 40, "x" * 40]}, 20),
        ({"prompt": "x" * 400}, 1100),
        ({}, 1000),
    ],
)
def test_an_estimate_is_a_quarter_of_the_characters_and_all_that_may_come(
    body: dict[str, object], tokens: float
) -> None:
    assert estimate_tokens(body) == pytest.approx(tokens)


def test_an_image_is_not_counted_by_its_characters() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 4_000_000}}
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "what?"}, image]}], "max_tokens": 10}
    assert 1000 < estimate_tokens(body) < 1100
