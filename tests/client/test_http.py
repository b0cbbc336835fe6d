from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from matrix.client.endpoints import Endpoints
from matrix.client.http import ModelClient
from matrix.errors import RequestError
from tests.fake_engine import FakeEngine, Fault

BODY: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": "hello you"}]}


def client(*urls: str, endpoints: Endpoints | None = None, **options: Any) -> ModelClient:
    settings = {"api_key": None, "timeout_s": 10, "max_attempts": 3, "backoff_s": 0.01} | options
    return ModelClient(endpoints or Endpoints(urls), **settings)


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
    "http_408": Fault.http(408),
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


async def test_the_deadline_ends_a_row_that_hangs() -> None:
    async with FakeEngine(fail=[Fault.hang()]) as engine, client(engine.url, timeout_s=0.3) as chat:
        started = time.perf_counter()
        with pytest.raises(RequestError, match=r"no answer within 0.3 s \(try 1, 0 failed\)") as caught:
            await chat.chat(BODY)
    assert time.perf_counter() - started < 5
    assert (caught.value.kind, caught.value.attempts) == ("timeout", 1)


async def test_the_deadline_is_one_for_all_tries() -> None:
    faults = [Fault.http(503, "warming up"), Fault.hang()]
    async with FakeEngine(fail=faults) as engine, client(engine.url, timeout_s=0.5) as chat:
        started = time.perf_counter()
        with pytest.raises(RequestError, match=r"before that http_503: .*warming up") as caught:
            await chat.chat(BODY)
    assert time.perf_counter() - started < 5
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
    endpoint = endpoints.pick()
    assert endpoint is not None
    assert endpoint.outstanding == 1, "the pick itself"


def test_the_engine_runs_beside_blocking_code() -> None:
    async def ask(url: str) -> str:
        async with client(url) as chat:
            return (await chat.chat(BODY)).text[0]

    with FakeEngine.in_thread(lambda body: body["model"].upper()) as engine:
        assert asyncio.run(ask(engine.url)) == "FAKE"
