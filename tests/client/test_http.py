from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from matrix.client.endpoints import Endpoints
from matrix.client.http import ChatClient, _seconds
from matrix.errors import RequestError
from tests.fake_engine import FakeEngine, Fault

BODY: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": "hello you"}]}


def client(*urls: str, endpoints: Endpoints | None = None, **options: Any) -> ChatClient:
    settings = {"api_key": None, "timeout_s": 10, "max_attempts": 3, "backoff_s": 0.01} | options
    return ChatClient(endpoints or Endpoints(urls), **settings)


def dead_url() -> str:
    """Nobody listens there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/v1"


async def test_an_answer() -> None:
    async with FakeEngine() as engine, client(engine.url) as chat:
        response = await chat.chat(BODY)
    assert response.text == ["hello you"]
    assert response.finish_reason == ["stop"]
    assert response.usage == {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}
    assert (response.endpoint, response.attempts) == (engine.url, 1)
    assert (response.reasoning_content, response.tool_calls, response.logprobs) == (None, None, None)


async def test_latency_is_that_of_the_answer() -> None:
    async with FakeEngine(latency_s=0.2, fail=[Fault.http(503)]) as engine, client(engine.url) as chat:
        response = await chat.chat(BODY)
    assert 0.2 <= response.latency_s < 1


async def test_the_body_arrives_as_given() -> None:
    body = BODY | {"temperature": 0, "seed": 0, "top_p": 0.0, "n": 2, "stop": [], "logprobs": True, "text": "é\n😀"}
    async with FakeEngine() as engine, client(engine.url) as chat:
        response = await chat.chat(body)
    assert engine.requests == [body]
    assert engine.headers[0]["Content-Type"] == "application/json"
    assert len(response.text) == len(response.logprobs or ()) == 2


async def test_tool_calls_and_reasoning_come_through() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    async with FakeEngine(lambda _: {"reasoning": "hm", "tool_calls": [call]}) as engine, client(engine.url) as chat:
        response = await chat.chat(BODY)
    assert response.text == [""]
    assert response.reasoning_content == ["hm"]
    assert response.tool_calls == [[call]]
    assert response.finish_reason == ["tool_calls"]


async def test_the_key_is_sent_and_a_wrong_one_is_final() -> None:
    async with FakeEngine(api_key="sesame") as engine:
        async with client(engine.url, api_key="sesame\n") as chat:
            assert (await chat.chat(BODY)).attempts == 1
        async with client(engine.url, api_key="wrong") as chat:
            with pytest.raises(RequestError, match=r"401.*Unauthorized") as caught:
                await chat.chat(BODY)
    assert (caught.value.kind, caught.value.attempts) == ("http_401", 1)
    async with FakeEngine() as engine, client(engine.url) as chat:
        await chat.chat(BODY)
    assert "Authorization" not in engine.headers[0]


async def test_connections_are_kept() -> None:
    async with FakeEngine() as engine, client(engine.url) as chat:
        for _ in range(10):
            await chat.chat(BODY)
    assert len(engine.clients) == 1


async def test_the_pool_holds_nothing_back() -> None:
    async with FakeEngine(latency_s=1) as engine, client(engine.url) as chat:
        responses = await asyncio.gather(*(chat.chat(BODY) for _ in range(300)))
    assert len(responses) == engine.max_in_flight == 300


MENDABLE = {
    "http_429": Fault.http(429),
    "http_500": Fault.http(500),
    "http_502": Fault.http(502, body="<html>bad gateway</html>"),
    "http_503": Fault.http(503),
    "http_504": Fault.http(504, body=""),
    "connection": Fault.reset(),
    "connection, closed": Fault.disconnect(),
    "bad_response": Fault.garbage(),
    "bad_response, half": Fault.half(),
    "bad_response, no choices": Fault.garbage('{"choices": []}'),
    "bad_response, no HTTP": Fault.not_http(),
}


@pytest.mark.parametrize("kind", MENDABLE)
async def test_what_another_try_can_mend_is_tried_again(kind: str) -> None:
    async with FakeEngine(fail=[MENDABLE[kind]] * 2) as engine, client(engine.url) as chat:
        response = await chat.chat(BODY)
    assert response.text == ["hello you"]
    assert response.attempts == len(engine.requests) == 3


@pytest.mark.parametrize("kind", MENDABLE)
async def test_after_the_last_try_the_error_says_what_and_where(kind: str) -> None:
    async with FakeEngine(fail=lambda _: MENDABLE[kind]) as engine, client(engine.url, max_attempts=2) as chat:
        with pytest.raises(RequestError, match=engine.url) as caught:
            await chat.chat(BODY)
    assert (caught.value.kind, caught.value.attempts) == (kind.partition(",")[0], 2)
    assert len(engine.requests) == 2


@pytest.mark.parametrize("status", [400, 404, 413, 422])
async def test_a_refusal_is_final_and_in_the_words_of_the_server(status: int) -> None:
    async with FakeEngine(fail=[Fault.http(status, "context is too long")]) as engine, client(engine.url) as chat:
        with pytest.raises(RequestError, match="context is too long") as caught:
            await chat.chat(BODY)
    assert (caught.value.kind, caught.value.attempts) == (f"http_{status}", 1)
    assert len(engine.requests) == 1


async def test_a_redirect_is_not_followed() -> None:
    # aiohttp would turn the POST into a GET.
    async with (
        FakeEngine(fail=[Fault.http(302, headers={"Location": "/health"})]) as engine,
        client(engine.url) as chat,
    ):
        with pytest.raises(RequestError, match="HTTP 302"):
            await chat.chat(BODY)


async def test_a_body_that_is_not_json_never_leaves() -> None:
    async with FakeEngine() as engine, client(engine.url) as chat:
        with pytest.raises(RequestError, match="JSON") as caught:
            await chat.chat(BODY | {"seed": object()})
    assert caught.value.kind == "bad_request"
    assert engine.requests == []


async def test_not_a_url_is_said_at_once() -> None:
    async with client("localhost:8000/v1") as chat:
        with pytest.raises(RequestError, match="localhost:8000") as caught:
            await chat.chat(BODY)
    assert (caught.value.kind, caught.value.attempts) == ("connection", 1)


async def test_retry_after_is_waited_for() -> None:
    faults = [Fault.http(429, headers={"Retry-After": "1"})]
    async with FakeEngine(fail=faults) as engine, client(engine.url) as chat:
        started = time.perf_counter()
        await chat.chat(BODY)
    assert 1 <= time.perf_counter() - started < 3


async def test_retry_after_is_capped() -> None:
    faults = [Fault.http(503, headers={"Retry-After": "3600"})]
    async with FakeEngine(fail=faults) as engine, client(engine.url, max_backoff_s=0.1) as chat:
        assert (await chat.chat(BODY)).attempts == 2


async def test_a_wait_beyond_the_deadline_is_not_begun() -> None:
    faults = [Fault.http(429, "slow down", headers={"Retry-After": "30"})]
    async with FakeEngine(fail=faults) as engine, client(engine.url, timeout_s=5) as chat:
        started = time.perf_counter()
        with pytest.raises(RequestError, match=r"slow down.*no time for another try") as caught:
            await chat.chat(BODY)
    assert time.perf_counter() - started < 2
    assert (caught.value.kind, caught.value.attempts) == ("http_429", 1)


def test_retry_after_has_two_forms() -> None:
    assert _seconds("2") == 2
    assert _seconds("0.5") == 0.5
    assert _seconds(None) == _seconds("soon") == _seconds("-3") == _seconds("nan") == 0
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert 55 < _seconds(soon) <= 60
    assert _seconds(format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True)) == 0


def test_backoff_doubles_varies_and_ends() -> None:
    chat = client("http://a/v1", backoff_s=1, max_backoff_s=10)
    waits = [[chat._wait_s(attempt, 0) for _ in range(100)] for attempt in range(1, 7)]
    assert all(0.5 * 2**i <= wait <= 2**i for i, some in enumerate(waits[:4]) for wait in some)
    assert len(set(waits[0])) > 50
    assert max(waits[5]) == 10
    assert chat._wait_s(10_000, 0) == 10
    assert 7.5 <= chat._wait_s(1, 7) <= 8


async def test_the_deadline_ends_a_row_that_hangs() -> None:
    async with FakeEngine(fail=[Fault.hang()]) as engine, client(engine.url, timeout_s=0.3) as chat:
        started = time.perf_counter()
        with pytest.raises(RequestError, match=r"no answer within 0.3 s \(try 1 of 3\)") as caught:
            await chat.chat(BODY)
    assert time.perf_counter() - started < 1.5
    assert (caught.value.kind, caught.value.attempts) == ("timeout", 1)


async def test_the_deadline_is_one_for_all_tries() -> None:
    faults = [Fault.http(503, "warming up"), Fault.hang()]
    async with FakeEngine(fail=faults) as engine, client(engine.url, timeout_s=0.5) as chat:
        started = time.perf_counter()
        with pytest.raises(RequestError, match=r"before that http_503: .*warming up") as caught:
            await chat.chat(BODY)
    assert time.perf_counter() - started < 1.5
    assert (caught.value.kind, caught.value.attempts) == ("timeout", 2)


async def test_a_try_has_a_limit_of_its_own() -> None:
    async with FakeEngine(fail=[Fault.hang()]) as engine, client(engine.url, try_timeout_s=0.2) as chat:
        assert (await chat.chat(BODY)).attempts == 2


async def test_the_next_try_goes_to_another_server() -> None:
    async with (
        FakeEngine(fail=lambda _: Fault.http(500)) as ill,
        FakeEngine() as well,
        client(ill.url, well.url, max_attempts=2) as chat,
    ):
        responses = [await chat.chat(BODY) for _ in range(6)]
    assert {response.endpoint for response in responses} == {well.url}
    assert len(ill.requests) == sum(response.attempts == 2 for response in responses) > 0


async def test_a_dead_server_is_left_alone_for_a_while() -> None:
    async with FakeEngine() as engine, client(dead_url(), engine.url) as chat:
        responses = [await chat.chat(BODY) for _ in range(10)]
    assert [response.attempts for response in responses] == [2] + [1] * 9


async def test_connection_failures_ask_where_the_servers_are_now() -> None:
    async with FakeEngine() as engine:

        async def refresh() -> Sequence[str]:
            return [engine.url]

        async with client(endpoints=Endpoints([dead_url()], refresh)) as chat:
            response = await chat.chat(BODY)
    assert (response.endpoint, response.attempts) == (engine.url, 2)


async def test_a_server_that_comes_back_is_found() -> None:
    engine = FakeEngine()
    async with engine, client(engine.url, max_attempts=20, backoff_s=0.05, max_backoff_s=0.1) as chat:
        await chat.chat(BODY)
        await engine.stop()
        rows = [asyncio.create_task(chat.chat(BODY)) for _ in range(10)]
        await asyncio.sleep(0.3)
        await engine.start()
        responses = await asyncio.gather(*rows)
    assert all(response.attempts > 1 for response in responses)


async def test_a_row_that_is_cancelled_leaves_nothing_behind() -> None:
    async with FakeEngine(fail=[Fault.hang()]) as engine:
        endpoints = Endpoints([engine.url])
        async with client(endpoints=endpoints) as chat:
            row = asyncio.create_task(chat.chat(BODY))
            while not engine.in_flight:
                await asyncio.sleep(0.01)
            row.cancel()
            with pytest.raises(asyncio.CancelledError):
                await row
            while engine.in_flight:
                await asyncio.sleep(0.01)
    assert endpoints.pick().outstanding == 1, "the pick itself"


async def test_every_row_is_answered_once_among_faulty_replicas() -> None:
    """Three replicas: one loses every second request in one way or another, one sheds load, one is fine."""
    ways = [Fault.reset(), None, Fault.half(), None, Fault.garbage(), None, Fault.http(500), None] * 100
    busy = [Fault.http(429, headers={"Retry-After": "0.05"}), None, None] * 100
    bodies = [BODY | {"messages": [{"role": "user", "content": f"row {number}"}]} for number in range(200)]
    async with (
        FakeEngine(fail=ways) as flaky,
        FakeEngine(fail=busy) as loaded,
        FakeEngine(latency_s=0.01) as fine,
        client(flaky.url, loaded.url, fine.url, max_attempts=10) as chat,
    ):
        responses = await asyncio.gather(*map(chat.chat, bodies))
    assert [response.text for response in responses] == [[f"row {number}"] for number in range(200)]
    assert max(response.attempts for response in responses) > 1


def test_the_engine_runs_beside_blocking_code() -> None:
    async def ask(url: str) -> str:
        async with client(url) as chat:
            return (await chat.chat(BODY)).text[0]

    with FakeEngine.in_thread(lambda body: body["model"].upper()) as engine:
        assert asyncio.run(ask(engine.url)) == "FAKE"
