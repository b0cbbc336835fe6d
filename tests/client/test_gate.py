from __future__ import annotations

import asyncio
import random
import time

import pytest

from matrix.client.concurrency import AdaptiveLimit
from matrix.client.gate import Gate
from matrix.client.rates import Rates


def fixed(number: int) -> AdaptiveLimit:
    return AdaptiveLimit(start=number, minimum=number, maximum=number)


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_it_lets_in_as_many_as_the_limit_says_in_their_order() -> None:
    gate, order = Gate(fixed(2)), list[int]()

    async def row(number: int) -> None:
        await gate.enter()
        order.append(number)

    tasks = [asyncio.create_task(row(number)) for number in range(6)]
    await settle()
    assert order == [0, 1]
    assert gate.waiting == 4
    for inside in range(2, 6):
        gate.leave()
        await settle()
        assert order == list(range(inside + 1))
    await asyncio.gather(*tasks)


async def test_it_never_holds_more_than_the_limit() -> None:
    gate, inside, most = Gate(fixed(7)), 0, 0

    async def row() -> None:
        nonlocal inside, most
        await gate.enter()
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.001)
        inside -= 1
        gate.leave()

    await asyncio.gather(*(row() for _ in range(200)))
    assert most == 7
    assert gate.limit.in_flight == 0


async def test_without_a_limit_nobody_waits() -> None:
    gate = Gate()
    for _ in range(5000):
        await gate.enter()
    assert gate.limit.in_flight == 5000


async def test_who_was_in_before_goes_before_the_others() -> None:
    gate, order = Gate(fixed(1)), list[str]()
    await gate.enter()

    async def row(name: str, again: bool) -> None:
        await gate.enter(again=again)
        order.append(name)

    tasks = []
    for name, again in (("new 1", False), ("new 2", False), ("again 1", True), ("again 2", True)):
        tasks.append(asyncio.create_task(row(name, again)))
        await settle()
    for _ in tasks:
        gate.leave()
        await settle()
    assert order == ["again 1", "again 2", "new 1", "new 2"]


async def test_one_that_is_cancelled_while_it_waits_takes_no_place() -> None:
    gate = Gate(fixed(1))
    await gate.enter()
    first, second = (asyncio.create_task(gate.enter()) for _ in range(2))
    await settle()
    first.cancel()
    await settle()
    gate.leave()
    await asyncio.wait_for(second, 1)
    assert gate.limit.in_flight == 1


async def test_one_that_is_cancelled_as_it_is_let_in_gives_its_place_to_the_next() -> None:
    gate = Gate(fixed(1))
    await gate.enter()
    first, second = (asyncio.create_task(gate.enter()) for _ in range(2))
    await settle()
    gate.leave()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await asyncio.wait_for(second, 1)
    assert gate.limit.in_flight == 1


async def test_nobody_enters_before_retry_after() -> None:
    gate = Gate(fixed(3))
    entered_at = await gate.enter()
    gate.refused(entered_at, 0.3)
    assert 0.2 < gate.opens_in_s() <= 0.3
    started = time.monotonic()
    await asyncio.gather(*(gate.enter() for _ in range(3)), asyncio.sleep(0))
    assert 0.3 <= time.monotonic() - started < 0.6


async def test_more_are_let_in_when_the_limit_grows() -> None:
    gate = Gate(AdaptiveLimit(start=2, maximum=64))
    most = 0

    async def row() -> None:
        nonlocal most
        entered_at = await gate.enter()
        most = max(most, gate.limit.in_flight)
        await asyncio.sleep(0.001)
        gate.succeeded(entered_at)

    await asyncio.gather(*(row() for _ in range(1500)))
    assert most > 16


async def test_requests_per_minute() -> None:
    gate = Gate(rates=Rates(requests_per_minute=600))
    started = time.monotonic()
    for _ in range(13):
        await gate.enter()
    assert 0.3 <= time.monotonic() - started < 0.6, "ten at once, then one in a tenth of a second"


async def test_tokens_that_were_not_used_let_the_next_in_early() -> None:
    gate = Gate(rates=Rates(tokens_per_minute=6000))
    assert gate.counts_tokens
    entered_at = await gate.enter(1000)
    waiting = asyncio.create_task(gate.enter(50))
    await asyncio.sleep(0.05)
    assert not waiting.done(), "for nine seconds"
    gate.succeeded(entered_at, estimated=1000, used=60)
    started = time.monotonic()
    await asyncio.wait_for(waiting, 1)
    assert time.monotonic() - started < 0.5


async def test_one_that_is_cancelled_leaves_its_tokens_to_the_others() -> None:
    gate = Gate(fixed(1), Rates(tokens_per_minute=6000))
    await gate.enter(100)
    first, second = asyncio.create_task(gate.enter(5000)), asyncio.create_task(gate.enter(1))
    await settle()
    first.cancel()
    gate.leave()
    await asyncio.wait_for(second, 1)


async def test_whatever_happens_places_are_neither_lost_nor_doubled() -> None:
    chance = random.Random(0)
    gate = Gate(AdaptiveLimit(start=8, minimum=2, maximum=32), Rates(requests_per_minute=600_000))
    inside = done = 0

    async def row() -> None:
        nonlocal inside, done
        entered_at = await gate.enter(10, again=chance.random() < 0.2)
        inside += 1
        assert inside <= 32
        try:
            await asyncio.sleep(chance.random() * 0.004)
        except asyncio.CancelledError:
            gate.leave()
            raise
        finally:
            inside -= 1
        end = chance.random()
        if end < 0.8:
            gate.succeeded(entered_at, 10, 5)
        elif end < 0.9:
            gate.refused(entered_at, 0.002)
        else:
            gate.leave()
        done += 1

    tasks = [asyncio.create_task(row()) for _ in range(2000)]

    async def trouble() -> None:
        for _ in range(300):
            chance.choice(tasks).cancel()
            await asyncio.sleep(0.001)

    await asyncio.wait_for(asyncio.gather(trouble(), *tasks, return_exceptions=True), 60)
    assert gate.limit.in_flight == 0 == gate.waiting
    assert done + sum(task.cancelled() for task in tasks) == 2000
