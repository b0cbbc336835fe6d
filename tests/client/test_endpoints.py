from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import timeit
from collections import Counter
from collections.abc import Callable

import pytest

from matrix.client import endpoints as module
from matrix.client.breaker import OPENS_AFTER
from matrix.client.endpoints import Endpoint, Endpoints, NobodyAnswersError
from matrix.errors import AppError

A, B, C = (f"http://{name}/v1" for name in "abc")
DOOR = "http://door/v1"


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def take(endpoints: Endpoints, affinity: str | None = None, avoid: tuple[str, ...] = ()) -> Endpoint:
    endpoint = endpoints.pick(affinity, avoid)
    assert endpoint is not None
    return endpoint


def once(endpoints: Endpoints, affinity: str | None = None, avoid: tuple[str, ...] = ()) -> str:
    endpoint = take(endpoints, affinity, avoid)
    endpoints.release(endpoint)
    return endpoint.url


def lose(endpoints: Endpoints, clock: Callable[[], float], endpoint: Endpoint | None = None) -> Endpoint:
    """A request to an endpoint that can't be reached."""
    endpoint = endpoint or take(endpoints)
    endpoints.release(endpoint)
    endpoints.failed(endpoint, clock(), "refused", unreachable=True)
    return endpoint


def test_equals_take_turns() -> None:
    endpoints = Endpoints([A, B, C])
    assert [once(endpoints) for _ in range(6)] == [A, B, C, A, B, C]


def test_the_least_loaded_is_next() -> None:
    endpoints = Endpoints([A, B])
    held = [take(endpoints) for _ in range(5)]
    assert sorted(endpoint.outstanding for endpoint in set(held)) == [2, 3]
    for endpoint in held:
        if endpoint.url == A:
            endpoints.release(endpoint)
    assert take(endpoints).url == A


def test_what_was_tried_is_left_out_while_there_is_another() -> None:
    endpoints = Endpoints([A, B])
    assert {take(endpoints, avoid=(A,)).url for _ in range(3)} == {B}
    assert Counter(take(Endpoints([A]), avoid=(A,)).url for _ in range(2)) == {A: 2}


def test_replace_keeps_the_counts_of_those_that_stay() -> None:
    endpoints = Endpoints([A, B])
    gone, kept = take(endpoints), take(endpoints)
    endpoints.replace([B + "/", C])
    assert endpoints.urls == [B, C]
    assert take(endpoints).url == C, "B is still busy with a request"
    endpoints.release(gone)
    endpoints.release(kept)
    endpoints.replace([])
    assert endpoints.urls == [B, C], "no answer is no news"


def test_none_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one endpoint"):
        Endpoints([])


# Affinity


def test_a_key_keeps_its_replica_and_keys_spread_evenly() -> None:
    urls = [f"http://{number}/v1" for number in range(8)]
    endpoints = Endpoints(urls)
    of_key = {f"row-{number}": once(endpoints, f"row-{number}") for number in range(8000)}
    assert all(once(endpoints, key) == url for key, url in list(of_key.items())[:100])
    counts = Counter(of_key.values())
    # 1,000 +- 30 (the deviation of a fair choice).
    assert all(880 < counts[url] < 1120 for url in urls), counts


def test_a_replica_that_goes_moves_only_its_own_keys() -> None:
    clock = Clock()
    endpoints = Endpoints([A, B, C], clock=clock)
    keys = [str(number) for number in range(300)]
    before = {key: once(endpoints, key) for key in keys}
    lose(endpoints, clock, next(one for one in [take(endpoints) for _ in range(3)] if one.url == B))
    after = {key: once(endpoints, key) for key in keys}
    assert all(after[key] == before[key] for key in keys if before[key] != B)
    assert {after[key] for key in keys if before[key] == B} == {A, C}


def test_the_order_of_the_set_and_the_process_do_not_matter() -> None:
    script = (
        "from matrix.client.endpoints import Endpoints\n"
        f"print([Endpoints({[C, A, B]!r}).pick(str(number)).url for number in range(50)])"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert str([once(Endpoints([A, B, C]), str(number)) for number in range(50)]) == told.strip()


def test_a_few_requests_never_spill() -> None:
    endpoints = Endpoints([A, B, C])
    # The fifth finds four there.
    assert len({take(endpoints, "key").url for _ in range(5)}) == 1
    assert take(endpoints, "key").url != take(Endpoints([A, B, C]), "key").url


def test_a_loaded_replica_spills_over_to_the_least_loaded() -> None:
    endpoints = Endpoints([A, B, C])
    held = [take(endpoints) for _ in range(30)]
    favourite = once(endpoints, "key")
    counts = Counter(take(endpoints, "key").url for _ in range(60))
    assert counts[favourite] > 20, "it has up to 1.5 times the mean"
    loads = {endpoint.url: endpoint.outstanding for endpoint in set(held)}
    mean = sum(loads.values()) / 3
    assert loads[favourite] <= 1.5 * mean + 1
    others = [load for url, load in loads.items() if url != favourite]
    assert abs(others[0] - others[1]) <= 1


# Breakers


def test_one_that_cannot_be_reached_is_left_alone_then_probed_once() -> None:
    clock = Clock()
    endpoints = Endpoints([A, B], clock=clock)
    assert lose(endpoints, clock).url == A
    assert {take(endpoints).url for _ in range(10)} == {B}, "loaded as it is, B is the one that is up"
    clock.now += 0.5
    probe = take(endpoints)
    assert probe.url == A
    assert {take(endpoints).url for _ in range(10)} == {B}, "one probe, not more"
    endpoints.succeeded(probe)
    assert {take(endpoints).url for _ in range(10)} == {A}, "it has less to do"


def test_a_probe_that_fails_shuts_it_for_longer() -> None:
    clock = Clock()
    endpoints = Endpoints([A, B], clock=clock)
    lose(endpoints, clock)
    times = []
    for _ in range(6):
        began = clock.now
        while (endpoint := take(endpoints)).url == B:
            clock.now += 0.25
        times.append(clock.now - began)
        lose(endpoints, clock, endpoint)
    assert times == [0.5, 1, 2, 4, 5, 5]


def test_one_that_answers_wrongly_is_left_alone_after_some_in_a_row() -> None:
    clock = Clock()
    endpoints = Endpoints([A, B], clock=clock)
    bad = next(one for one in (take(endpoints), take(endpoints)) if one.url == A)
    for number in range(OPENS_AFTER):
        assert A in {once(endpoints) for _ in range(2)}, number
        endpoints.failed(bad, clock(), "HTTP 500")
    assert {once(endpoints) for _ in range(10)} == {B}


def test_a_retry_does_not_probe_what_it_just_came_from() -> None:
    clock = Clock()
    endpoints = Endpoints([A, B], clock=clock)
    lose(endpoints, clock)
    clock.now += 1
    assert once(endpoints, avoid=(A,)) == B
    assert once(endpoints) == A


def test_none_left_is_none_until_the_first_may_be_probed() -> None:
    clock = Clock()
    endpoints = Endpoints([A, B], clock=clock)
    lose(endpoints, clock)
    lose(endpoints, clock)
    assert endpoints.pick() is None
    clock.now += 0.5
    assert {once(endpoints, avoid=(A, B)), once(endpoints, avoid=(A, B))} == {A, B}
    assert endpoints.pick() is None


def test_the_front_door_is_for_when_nobody_else_is_left() -> None:
    clock = Clock()
    endpoints = Endpoints([A], fallback=DOOR + "/", clock=clock)
    assert once(endpoints) == A
    lose(endpoints, clock)
    assert {once(endpoints) for _ in range(3)} == {DOOR}
    lose(endpoints, clock)
    assert endpoints.pick() is None, "the door has a breaker of its own"
    clock.now += 0.5
    probe = take(endpoints)
    assert probe.url == A
    assert once(endpoints) == DOOR
    endpoints.succeeded(probe)
    assert once(endpoints) == A
    assert DOOR not in endpoints.urls


def test_who_asks_to_be_left_alone_is_if_there_is_another() -> None:
    clock = Clock()
    endpoints = Endpoints([A, B], clock=clock)
    first, second = take(endpoints), take(endpoints)
    assert endpoints.hold(first, 3)
    assert {once(endpoints) for _ in range(4)} == {second.url}
    assert not endpoints.hold(second, 3), "there is no other one left"
    clock.now += 2.9
    assert {once(endpoints) for _ in range(4)} == {second.url}
    clock.now += 0.1
    assert {once(endpoints) for _ in range(4)} == {A, B}


async def test_all_that_wait_go_on_when_the_probe_comes_back() -> None:
    endpoints = Endpoints([A])
    endpoint = lose(endpoints, lambda: 1e9)
    waiting = [asyncio.create_task(endpoints.take()) for _ in range(20)]
    done, _ = await asyncio.wait(waiting, timeout=2, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.sleep(0.05)
    assert sum(task.done() for task in waiting) == len(done) == 1, "the probe"
    endpoints.succeeded(endpoint)
    assert {one.url for one in await asyncio.wait_for(asyncio.gather(*waiting), 1)} == {A}
    await endpoints.close()


async def test_who_waits_may_leave() -> None:
    endpoints = Endpoints([A])
    lose(endpoints, lambda: 1e9)
    waiting = [asyncio.create_task(endpoints.take()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    endpoints.replace([B])
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert [one.url for one in results[1:] if isinstance(one, Endpoint)] == [B, B]


async def test_a_set_that_never_answered_is_given_up() -> None:
    endpoints = Endpoints([A], first_contact_s=0.2)
    lose(endpoints, lambda: 1e9)
    with pytest.raises(NobodyAnswersError, match=r"within 0.2 s: refused"):
        await asyncio.wait_for(endpoints.take(), 2)
    with pytest.raises(NobodyAnswersError):
        await asyncio.wait_for(endpoints.take(), 0.01)


async def test_a_set_that_answered_once_is_waited_for() -> None:
    endpoints = Endpoints([A], first_contact_s=0.01)
    endpoints.succeeded(take(endpoints))
    lose(endpoints, lambda: 1e9)
    assert (await asyncio.wait_for(endpoints.take(), 2)).url == A


# Refresh


async def test_refresh_is_asked_once_for_all_that_fail_together() -> None:
    asked = 0

    async def refresh() -> list[str]:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0.05)
        return [C]

    clock = Clock()
    endpoints = Endpoints([A, B], refresh, clock=clock)
    clock.now += 1
    for _ in range(20):
        endpoints.failed(take(Endpoints([A])), clock(), "HTTP 500")
    await asyncio.sleep(0.1)
    assert asked == 1
    assert endpoints.urls == [C]
    endpoints.failed(take(endpoints), clock(), "HTTP 500")
    assert asked == 1, "at most once a second"
    clock.now += 1
    endpoints.failed(take(endpoints), clock(), "HTTP 500")
    await asyncio.sleep(0)
    assert asked == 2
    await endpoints.close()


async def test_the_set_is_refreshed_in_use_without_any_failure() -> None:
    """A replica that was replaced comes back at another address, while those that are left don't fail."""

    async def refresh() -> list[str]:
        return [A, B]

    clock = Clock()
    endpoints = Endpoints([A], refresh, clock=clock)
    assert once(endpoints) == A
    clock.now += 31
    once(endpoints)
    await asyncio.sleep(0.01)
    assert endpoints.urls == [A, B]


async def test_who_waits_takes_what_a_refresh_brings() -> None:
    async def refresh() -> list[str]:
        return [C]

    clock = Clock()
    endpoints = Endpoints([A], refresh, clock=clock)
    clock.now += 1
    lose(endpoints, clock)
    assert (await asyncio.wait_for(endpoints.take(), 1)).url == C


async def test_refresh_that_fails_or_hangs_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken() -> list[str]:
        raise AppError("the controller is gone")

    async def hanging() -> list[str]:
        await asyncio.sleep(3600)
        return [C]

    monkeypatch.setattr(module, "_REFRESH_TIMEOUT_S", 0.05)
    for refresh in (broken, hanging):
        clock = Clock()
        endpoints = Endpoints([A], refresh, clock=clock)
        clock.now += 1
        lose(endpoints, clock)
        await asyncio.sleep(0.1)
        assert endpoints.urls == [A]


def test_a_pick_is_cheap_with_many_replicas() -> None:
    """256 replicas cost no more than 32 times what 8 cost: a look at each, nothing more."""

    def cost(replicas: int) -> float:
        endpoints = Endpoints([f"http://{number}/v1" for number in range(replicas)])
        return min(timeit.repeat(lambda: once(endpoints, "key"), number=200, repeat=5)) / 200

    few, many = cost(8), cost(256)
    assert many < 32 * few, f"{few * 1e6:.1f} us and {many * 1e6:.1f} us"


def test_the_only_replica_is_asked_though_it_answers_badly() -> None:
    """It would be no help to wait: what is asked fails at once, and the waits between tries grow."""
    clock = Clock()
    endpoints = Endpoints([A, B], clock=clock)
    lose(endpoints, clock, next(one for one in [take(endpoints) for _ in range(2)] if one.url == B))
    for _ in range(5):
        bad = endpoints.pick()
        assert bad is not None
        assert bad.url == A
        endpoints.release(bad)
        endpoints.failed(bad, clock(), "HTTP 500")
    again = endpoints.pick()
    assert again is not None
    assert again.url == A, "B can't be reached at all"
    lose(endpoints, clock, again)
    assert endpoints.pick() is None


async def test_a_refresh_that_fails_again_and_again_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    async def broken() -> list[str]:
        raise AppError("the cluster doesn't answer")

    async def well() -> list[str]:
        return [A]

    endpoints = Endpoints([A])
    for refresh in (broken, broken, broken, well, broken, broken):
        await endpoints._refreshed(refresh)
    said = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.getMessage().count("the cluster doesn't answer") for record in said] == [1, 1]
