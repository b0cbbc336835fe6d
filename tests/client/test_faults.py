"""The client against servers that are busy, dead, late or wrong: what is waited for, what counts, what ends a row."""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from collections.abc import Sequence
from typing import Any

import pytest
from aiohttp import web

from matrix.client.concurrency import AdaptiveLimit
from matrix.client.endpoints import Endpoints
from matrix.client.gate import Gate
from matrix.client.http import ModelClient
from matrix.client.rates import Rates
from matrix.errors import RequestError
from tests.fake_engine import FakeEngine, Fault

BODY: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": "hello you"}]}


def client(*urls: str, endpoints: Endpoints | None = None, **options: Any) -> ModelClient:
    settings = {"api_key": None, "timeout_s": 10, "max_attempts": 3, "backoff_s": 0.01} | options
    return ModelClient(endpoints or Endpoints(urls), **settings)


def dead_url() -> str:
    """Nobody listens there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/v1"


def rows(number: int) -> list[dict[str, Any]]:
    return [BODY | {"messages": [{"role": "user", "content": f"row {row}"}]} for row in range(number)]


# Too many requests


@pytest.mark.parametrize("fault", [Fault.http(429), Fault.http(503, headers={"Retry-After": "0.05"})])
async def test_being_sent_away_does_not_count_as_a_try_that_failed(fault: Fault) -> None:
    async with FakeEngine(fail=[fault] * 4) as engine, client(engine.url, max_attempts=1, max_backoff_s=0.05) as chat:
        response = await chat.chat(BODY)
    assert response.attempts == 5, "but it is told"


async def test_503_alone_counts() -> None:
    async with FakeEngine(fail=[Fault.http(503)] * 8) as engine, client(engine.url) as chat:
        with pytest.raises(RequestError) as caught:
            await chat.chat(BODY)
    assert (caught.value.kind, caught.value.attempts) == ("http_503", 3)


async def test_nobody_is_sent_before_retry_after() -> None:
    faults = [Fault.http(429, headers={"Retry-After": "1"})]
    gate = Gate(AdaptiveLimit(start=1, minimum=1, maximum=4))
    async with FakeEngine(fail=faults) as engine, client(engine.url, gate=gate) as chat:
        started = time.perf_counter()
        first = asyncio.create_task(chat.chat(BODY))
        while not engine.requests:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert gate.limit.in_flight == 0, "who waits holds no place"
        second = asyncio.create_task(chat.chat(BODY))
        await asyncio.sleep(0.3)
        assert len(engine.requests) == 1
        assert [(flight.phase, flight.attempt) for flight in chat.in_flight()] == [("waiting", 1)]
        await asyncio.gather(first, second)
    assert 1 <= time.perf_counter() - started < 3


async def test_a_wait_beyond_the_deadline_is_not_begun() -> None:
    faults = [Fault.http(429, "slow down", headers={"Retry-After": "30"})]
    async with FakeEngine(fail=faults) as engine, client(engine.url, timeout_s=5) as chat:
        started = time.perf_counter()
        with pytest.raises(RequestError, match=r"slow down.*no time for another try") as caught:
            await chat.chat(BODY)
    assert time.perf_counter() - started < 2
    assert (caught.value.kind, caught.value.attempts) == ("http_429", 1)


async def test_an_account_without_money_is_said_at_once() -> None:
    fault = Fault.http(429, body='{"error": {"message": "no money left", "code": "insufficient_quota"}}')
    async with FakeEngine(fail=lambda _: fault) as engine, client(engine.url) as chat:
        with pytest.raises(RequestError, match="no money left"):
            await chat.chat(BODY)
    assert len(engine.requests) == 1


async def test_one_replica_that_is_busy_is_left_alone_and_the_others_go_on() -> None:
    busy = Fault.http(429, headers={"Retry-After": "2"})
    gate = Gate(AdaptiveLimit(start=4))
    async with (
        FakeEngine(fail=lambda _: busy) as loaded,
        FakeEngine() as free,
        client(loaded.url, free.url, gate=gate) as chat,
    ):
        started = time.perf_counter()
        responses = [await chat.chat(BODY) for _ in range(20)]
    assert time.perf_counter() - started < 1.5
    assert {response.endpoint for response in responses} == {free.url}
    assert len(loaded.requests) == 1
    assert gate.limit.limit == 4


async def test_a_server_with_room_for_ten_gets_about_ten() -> None:
    engine = FakeEngine(latency_s=0.02, fail=lambda _: Fault.http(429) if engine.in_flight > 10 else None)
    gate = Gate(AdaptiveLimit(start=64))
    async with engine, client(engine.url, gate=gate, timeout_s=60) as chat:
        responses = await asyncio.gather(*map(chat.chat, rows(800)))
    assert [response.text for response in responses] == [[f"row {row}"] for row in range(800)]
    assert gate.limit.limit <= 16
    assert len(engine.requests) < 1200


async def test_requests_per_minute_hold() -> None:
    gate = Gate(rates=Rates(requests_per_minute=600))
    async with FakeEngine() as engine, client(engine.url, gate=gate) as chat:
        started = time.perf_counter()
        await asyncio.gather(*(chat.chat(BODY) for _ in range(14)))
    assert 0.4 <= time.perf_counter() - started < 2


async def test_waiting_for_a_turn_is_not_late() -> None:
    """The deadline runs from the first time that a row is let through the gate."""
    gate = Gate(AdaptiveLimit(start=1, minimum=1, maximum=1))
    async with FakeEngine(latency_s=0.1) as engine, client(engine.url, gate=gate, timeout_s=0.4) as chat:
        responses = await asyncio.gather(*(chat.chat(BODY) for _ in range(8)))
    assert len(responses) == 8


# Nobody there


async def test_a_dead_server_is_left_alone_for_a_while() -> None:
    async with FakeEngine() as engine, client(dead_url(), engine.url) as chat:
        responses = [await chat.chat(BODY) for _ in range(10)]
    assert [response.attempts for response in responses] == [2] + [1] * 9


async def test_connection_failures_ask_where_the_servers_are_now() -> None:
    async with FakeEngine() as engine:

        async def refresh() -> Sequence[str]:
            return [engine.url]

        endpoints = Endpoints([dead_url()], refresh)
        await asyncio.sleep(1.0)
        async with client(endpoints=endpoints) as chat:
            response = await chat.chat(BODY)
    assert (response.endpoint, response.attempts) == (engine.url, 2)


async def test_an_engine_that_restarts_costs_no_row() -> None:
    """More failures to connect than there are attempts, and no attempt is lost by them."""
    engine = FakeEngine(latency_s=0.05)
    async with engine, client(engine.url, max_attempts=2, timeout_s=30) as chat:
        await chat.chat(BODY)
        tasks = [asyncio.create_task(chat.chat(body)) for body in rows(200)]
        await asyncio.sleep(0.1)
        await engine.stop()
        more = [asyncio.create_task(chat.chat(body)) for body in rows(50)]
        await asyncio.sleep(4)
        assert not any(task.done() for task in more)
        await engine.start()
        responses = await asyncio.gather(*tasks, *more)
    assert [response.text[0] for response in responses] == [f"row {row}" for row in [*range(200), *range(50)]]


async def test_a_wrong_url_is_said_before_all_deadlines_are_over() -> None:
    url = dead_url()
    async with client(endpoints=Endpoints([url], first_contact_s=0.3), timeout_s=600) as chat:
        started = time.perf_counter()
        failures = await asyncio.gather(*map(chat.chat, rows(20)), return_exceptions=True)
    assert time.perf_counter() - started < 3
    assert {failure.kind for failure in failures if isinstance(failure, RequestError)} == {"connection"}
    assert all(url in str(failure) for failure in failures)


async def test_the_front_door_stands_in_while_no_replica_is_there() -> None:
    async with FakeEngine() as door, client(endpoints=Endpoints([dead_url()], fallback=door.url)) as chat:
        responses = [await chat.chat(BODY) for _ in range(5)]
    assert {response.endpoint for response in responses} == {door.url}


# Wrong and late


async def test_every_row_is_answered_once_among_faulty_replicas() -> None:
    """Of five replicas one loses every second request in one way or another, one sheds load, one hangs, one is dead."""
    ways = [Fault.reset(), None, Fault.half(), None, Fault.garbage(), None, Fault.http(500), None] * 100
    busy = [Fault.http(429, headers={"Retry-After": "0.05"}), None, None] * 100
    async with (
        FakeEngine(fail=ways) as flaky,
        FakeEngine(fail=busy) as loaded,
        FakeEngine(fail=lambda _: Fault.hang()) as hanging,
        FakeEngine(latency_s=0.01) as fine,
        client(
            flaky.url, loaded.url, hanging.url, dead_url(), fine.url,
            max_attempts=10, try_timeout_s=0.5, gate=Gate(AdaptiveLimit(start=16)), timeout_s=60,
        ) as chat,
    ):  # fmt: skip
        responses = await asyncio.gather(*(chat.chat(body, affinity=str(row)) for row, body in enumerate(rows(400))))
    assert [response.text for response in responses] == [[f"row {number}"] for number in range(400)]
    assert max(response.attempts for response in responses) > 1
    assert chat.in_flight() == []
    assert chat.gate.limit.in_flight == 0


async def test_what_stalls_can_be_given_up() -> None:
    async with FakeEngine(fail=[Fault.hang()]) as engine, client(engine.url, timeout_s=60) as chat:
        row = asyncio.create_task(chat.chat(BODY, label="row 7"))
        while not engine.in_flight:
            await asyncio.sleep(0.01)
        (flight,) = chat.in_flight()
        assert (flight.label, flight.endpoint, flight.attempt, flight.phase) == ("row 7", engine.url, 1, "sent")
        assert 0 < time.monotonic() - flight.started < 5
        chat.give_up(flight, "nothing for 60 s")
        with pytest.raises(RequestError, match="nothing for 60 s") as caught:
            await row
        assert (caught.value.kind, caught.value.attempts) == ("stalled", 1)
        assert chat.in_flight() == []
        chat.give_up(flight, "it is gone already")


async def test_the_oldest_comes_first() -> None:
    async with FakeEngine(latency_s=0.2) as engine, client(engine.url) as chat:
        tasks = [asyncio.create_task(chat.chat(BODY, label=str(row))) for row in range(5)]
        await asyncio.sleep(0.1)
        assert [flight.label for flight in chat.in_flight()] == list("01234")
        await asyncio.gather(*tasks)


# The rest of the wire


async def test_completions_and_embeddings_have_paths_of_their_own() -> None:
    seen: list[tuple[str, Any]] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append((request.path, await request.json()))
        if request.path.endswith("embeddings"):
            return web.json_response({"data": [{"index": 0, "embedding": [0.5]}], "usage": {"prompt_tokens": 1}})
        return web.json_response({"choices": [{"index": 0, "text": "four", "finish_reason": "stop"}]})

    app = web.Application()
    app.router.add_post("/v1/{tail:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    prompt = {"model": "m", "prompt": "2 + 2 =", "temperature": 0, "seed": 0, "logprobs": 0, "guided_regex": "[0-9]"}
    texts = {"model": "m", "input": ["a"], "dimensions": 1}
    try:
        async with client(f"http://127.0.0.1:{runner.addresses[0][1]}/v1") as model:
            assert (await model.complete(prompt)).text == ["four"]
            assert (await model.embed(texts)).embeddings == [[0.5]]
    finally:
        await runner.cleanup()
    assert seen == [("/v1/completions", prompt), ("/v1/embeddings", texts)]


async def test_extras_and_zeros_arrive_as_they_are() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    body = BODY | {
        "tools": [tool], "tool_choice": "auto", "response_format": {"type": "json_schema", "json_schema": {}},
        "structured_outputs": {"regex": "a+"}, "guided_choice": ["a", "b"], "top_k": 0, "min_p": 0.0, "n": 1,
        "presence_penalty": 0, "logprobs": False, "top_logprobs": 0, "prompt_logprobs": 0, "seed": 0, "stop": None,
    }  # fmt: skip
    async with FakeEngine() as engine, client(engine.url) as chat:
        await chat.chat(body)
    assert engine.requests == [body]


async def test_all_turns_of_a_conversation_go_to_one_replica() -> None:
    async with FakeEngine() as a, FakeEngine() as b, FakeEngine() as c, client(a.url, b.url, c.url) as chat:
        of_key = {
            key: {(await chat.chat(BODY, affinity=key)).endpoint for _ in range(4)} for key in map(str, range(30))
        }
    assert {len(urls) for urls in of_key.values()} == {1}
    assert len(set.union(*of_key.values())) == 3


async def test_files_may_be_as_many_as_the_system_allows() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    try:
        async with client("http://a/v1"):
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
