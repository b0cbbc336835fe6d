from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from matrix.client import endpoints as module
from matrix.client.endpoints import Endpoints
from matrix.errors import AppError

A, B, C = (f"http://{name}/v1" for name in "abc")


def test_equals_take_turns() -> None:
    endpoints = Endpoints([A, B, C])
    urls = []
    for _ in range(6):
        with endpoints.lease() as endpoint:
            urls.append(endpoint.url)
    assert urls == [A, B, C, A, B, C]


def test_the_least_loaded_is_next() -> None:
    endpoints = Endpoints([A, B])
    held = [endpoints.pick() for _ in range(5)]
    assert sorted(endpoint.outstanding for endpoint in set(held)) == [2, 3]
    for endpoint in held:
        if endpoint.url == A:
            endpoints.release(endpoint)
    assert endpoints.pick().url == A


def test_a_lease_ends_with_its_request_whatever_happens() -> None:
    endpoints = Endpoints([A])
    with pytest.raises(KeyError), endpoints.lease() as endpoint:
        raise KeyError
    assert endpoint.outstanding == 0


def test_what_was_tried_is_left_out_while_there_is_another() -> None:
    endpoints = Endpoints([A, B])
    assert {endpoints.pick(avoid={A}).url for _ in range(3)} == {B}
    assert Counter(Endpoints([A]).pick(avoid={A}).url for _ in range(2)) == {A: 2}


async def test_a_failed_one_cools_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_COOL_DOWN_S", 0.05)
    endpoints = Endpoints([A, B])
    await endpoints.failed(endpoints.pick())
    assert {endpoints.pick().url for _ in range(10)} == {B}, "loaded as it is, B is the one that answers"
    await asyncio.sleep(0.06)
    assert endpoints.pick().url == A, "the cool-down is over and it has less to do"


async def test_all_failed_is_like_none_failed() -> None:
    endpoints = Endpoints([A, B])
    for _ in range(2):
        await endpoints.failed(endpoints.pick())
    assert {endpoints.pick().url for _ in range(2)} == {A, B}


def test_replace_keeps_the_counts_of_those_that_stay() -> None:
    endpoints = Endpoints([A, B])
    gone, kept = endpoints.pick(), endpoints.pick()
    endpoints.replace([B + "/", C])
    assert endpoints.urls == [B, C]
    assert endpoints.pick().url == C, "B is still busy with a request"
    endpoints.release(gone)
    endpoints.release(kept)
    endpoints.replace([])
    assert endpoints.urls == [B, C], "no answer is no news"


def test_none_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one endpoint"):
        Endpoints([])


async def test_refresh_is_asked_once_for_all_that_fail_together() -> None:
    asked = 0

    async def refresh() -> list[str]:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0.05)
        return [C]

    endpoints = Endpoints([A, B], refresh)
    await asyncio.gather(*(endpoints.failed(endpoints.pick()) for _ in range(20)))
    assert asked == 1
    assert endpoints.urls == [C]
    await endpoints.failed(endpoints.pick())
    assert asked == 1, "at most once a second"


async def test_refresh_that_was_asked_for_outlives_who_asked() -> None:
    async def refresh() -> list[str]:
        await asyncio.sleep(0.05)
        return [C]

    endpoints = Endpoints([A], refresh)
    first, second = (asyncio.create_task(endpoints.failed(endpoints.pick())) for _ in range(2))
    await asyncio.sleep(0.01)
    first.cancel()
    await second
    assert endpoints.urls == [C]


async def test_refresh_that_fails_or_hangs_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken() -> list[str]:
        raise AppError("the controller is gone")

    async def hanging() -> list[str]:
        await asyncio.sleep(3600)
        return [C]

    monkeypatch.setattr(module, "_REFRESH_TIMEOUT_S", 0.05)
    for refresh in (broken, hanging):
        endpoints = Endpoints([A], refresh)
        await endpoints.failed(endpoints.pick())
        assert endpoints.urls == [A]
