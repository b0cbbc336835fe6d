"""The client over gRPC: what fails is sorted, tried again, waited for and given up as over HTTP."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from matrix.client.endpoints import Endpoints
from matrix.client.http import ModelClient
from matrix.client.models import served_models
from matrix.client.query_llm import batch_requests, generate, make_request
from matrix.errors import AppError, ConfigError, RequestError
from matrix.serving import grpc_server
from matrix.serving.backend import ApiError
from matrix.serving.relay import RelayBackend
from tests.command import environment
from tests.fake_engine import FakeEngine
from tests.serving_backend import EchoBackend, in_thread

BODY: dict[str, Any] = {"model": "echo", "messages": [{"role": "user", "content": "hello you"}], "temperature": 0}


@asynccontextmanager
async def serving(backend: Any, api_key: str | None = None, port: int = 0) -> AsyncIterator[str]:
    server = await grpc_server.start(backend, "127.0.0.1", port, api_key)
    try:
        yield f"grpc://127.0.0.1:{server.port}"
    finally:
        await server.stop()


def client(*urls: str, **options: Any) -> ModelClient:
    settings = {"api_key": None, "timeout_s": 10, "max_attempts": 3, "backoff_s": 0.01} | options
    return ModelClient(settings.pop("endpoints", None) or Endpoints(urls), **settings)


def failing(*errors: Exception | None) -> Any:
    script = iter(errors)
    return lambda _: next(script, None)


async def test_chats_completions_and_embeddings() -> None:
    backend = EchoBackend()
    async with serving(backend) as url, client(url) as model:
        response = await model.chat({**BODY, "seed": 0, "logprobs": False, "stop": [], "mine": {"a": [1, None]}})
        completion = await model.complete({"prompt": "once"})
        vectors = await model.embed({"input": ["a"]})
    assert backend.requests[0] == {**BODY, "seed": 0, "logprobs": False, "stop": [], "mine": {"a": [1, None]}}
    assert (response.text, response.finish_reason) == (["hello you"], ["stop"])
    assert response.usage == {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    assert (response.endpoint, response.attempts) == (url, 1)
    assert (response.tool_calls, response.logprobs) == (None, None)
    assert completion.text == ["once"]
    assert vectors.embeddings == [[0.5, -1.25]]


async def test_the_same_answer_as_over_http() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    body = {**BODY, "n": 2, "logprobs": True}
    async with FakeEngine(lambda _: {"content": "a b", "reasoning": "hm", "tool_calls": [call]}) as engine:
        relay = RelayBackend(engine.url, None)
        await relay.start()
        async with serving(relay) as url, client(url) as by_grpc, client(engine.url) as by_http:
            first, second = await by_grpc.chat(body), await by_http.chat(body)
        await relay.close()
    assert engine.requests[0] == engine.requests[1] == body
    same = ("text", "finish_reason", "usage", "reasoning_content", "tool_calls", "logprobs")
    assert [getattr(first, name) for name in same] == [getattr(second, name) for name in same]
    assert first.tool_calls == [[call], [call]]


async def test_the_key() -> None:
    async with serving(EchoBackend(), "sesame") as url:
        async with client(url, api_key="sesame\n") as model:
            await model.chat(BODY)
        async with client(url, api_key="wrong") as model:
            with pytest.raises(RequestError, match=r"401.*Unauthorized") as caught:
                await model.chat(BODY)
    assert (caught.value.kind, caught.value.attempts) == ("http_401", 1)


@pytest.mark.parametrize("status", [500, 502, 503, 504, 408])
async def test_faults_are_tried_again(status: int) -> None:
    error = ApiError(status, "injected")
    async with serving(EchoBackend(fail=failing(error, error))) as url, client(url) as model:
        assert (await model.chat(BODY)).attempts == 3
    async with serving(EchoBackend(fail=lambda _: error)) as url, client(url) as model:
        with pytest.raises(RequestError, match="injected") as caught:
            await model.chat(BODY)
    assert (caught.value.kind, caught.value.attempts) == (f"http_{status}", 3)


@pytest.mark.parametrize("status", [400, 403, 404, 413, 422])
async def test_refusals_are_final(status: int) -> None:
    async with serving(EchoBackend(fail=lambda _: ApiError(status, "no"))) as url, client(url) as model:
        with pytest.raises(RequestError, match="no") as caught:
            await model.chat(BODY)
    assert (caught.value.kind, caught.value.attempts) == (f"http_{status}", 1)


async def test_a_busy_server_is_waited_for_as_it_asks() -> None:
    errors = [ApiError(429, "busy", retry_after_s=0.4)] * 4 + [ApiError(503, "busy", retry_after_s=0.1)]
    started = time.monotonic()
    async with serving(EchoBackend(fail=failing(*errors))) as url, client(url, max_attempts=1) as model:
        assert (await model.chat(BODY)).attempts == 6
    assert 1.7 <= time.monotonic() - started < 6


async def test_an_account_without_money_is_final() -> None:
    error = ApiError(429, "you have no money left", kind="insufficient_quota")
    async with serving(EchoBackend(fail=lambda _: error)) as url, client(url) as model:
        with pytest.raises(RequestError) as caught:
            await model.chat(BODY)
    assert (caught.value.kind, caught.value.attempts) == ("http_429", 1)


async def test_another_replica_takes_what_one_fails_at() -> None:
    bad, good = EchoBackend(fail=lambda _: ApiError(500, "bad")), EchoBackend()
    async with serving(bad) as first, serving(good) as second:
        endpoints = Endpoints([first, second])
        async with client(endpoints=endpoints) as model:
            responses = await asyncio.gather(*(model.chat(BODY) for _ in range(40)))
    assert {response.endpoint for response in responses} == {second}
    assert len(bad.requests) <= 20


async def test_a_server_that_isn_t_there_costs_no_tries() -> None:
    async with serving(EchoBackend()) as url:
        port = int(url.rpartition(":")[2])
    async with client(url, max_attempts=1) as model:
        asked = [asyncio.create_task(model.chat(BODY)) for _ in range(5)]
        await asyncio.sleep(1.2)
        async with serving(EchoBackend(), port=port):
            responses = await asyncio.gather(*asked)
    assert len(responses) == 5


async def test_a_server_that_starts_again() -> None:
    backend = EchoBackend()
    async with serving(backend) as url:
        model = await client(url, max_attempts=2).__aenter__()
        await model.chat(BODY)
        backend.latency_s = 30
        cut = [asyncio.create_task(model.chat(BODY)) for _ in range(3)]
        await until(lambda: backend.in_flight == 3)
        backend.latency_s = 0
    async with serving(EchoBackend(), port=int(url.rpartition(":")[2])):
        responses = await asyncio.gather(*cut, *(model.chat(BODY) for _ in range(3)))
    await model.__aexit__(None, None, None)
    assert all(response.attempts >= 2 for response in responses[:3])


async def test_a_set_that_never_answers_is_given_up() -> None:
    async with client(endpoints=Endpoints(["grpc://127.0.0.1:9"], first_contact_s=0.3)) as model:
        with pytest.raises(RequestError, match=r"no server answered.*failed to connect") as caught:
            await model.chat(BODY)
    assert caught.value.kind == "connection"
    async with client(endpoints=Endpoints(["grpc://no-such-host.invalid:9"], first_contact_s=0.3)) as model:
        with pytest.raises(RequestError, match="no server answered"):
            await model.chat(BODY)


async def test_breakers_open() -> None:
    backend = EchoBackend(fail=lambda _: ApiError(500, "bad"))
    async with serving(backend) as url, serving(EchoBackend()) as other:
        endpoints = Endpoints([url, other])
        async with client(endpoints=endpoints, max_attempts=20) as model:
            for _ in range(30):
                await model.chat(BODY)
        assert "bad" in endpoints.last_failure
    assert len(backend.requests) < 10


async def test_a_late_row_ends_on_both_sides() -> None:
    backend = EchoBackend(latency_s=30)
    async with serving(backend) as url, client(url, timeout_s=0.3) as model:
        with pytest.raises(RequestError, match=r"no answer within 0\.3 s") as caught:
            await model.chat(BODY)
        await until(lambda: not backend.in_flight)
    assert caught.value.kind == "timeout"
    assert backend.cancelled == 1


async def test_a_late_try_goes_to_another_server() -> None:
    slow, quick = EchoBackend(latency_s=30), EchoBackend()
    async with serving(slow) as first, serving(quick) as second, client(first, second, try_timeout_s=0.3) as model:
        responses = await asyncio.gather(*(model.chat(BODY) for _ in range(4)))
    assert {response.endpoint for response in responses} == {second}
    assert max(response.attempts for response in responses) == 2


async def test_a_caller_who_leaves_ends_the_work() -> None:
    backend = EchoBackend(latency_s=30)
    async with serving(backend) as url, client(url) as model:
        asked = asyncio.create_task(model.chat(BODY))
        await until(lambda: backend.in_flight == 1)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        await until(lambda: not backend.in_flight)
    assert backend.cancelled == 1


async def test_hundreds_at_a_time() -> None:
    # Long enough for a slow machine to send them all before the first is answered.
    backend = EchoBackend(latency_s=3)
    async with serving(backend) as url, client(url) as model:
        asked = [asyncio.create_task(model.chat(BODY)) for _ in range(300)]
        await until(lambda: backend.in_flight == 300)
        await asyncio.gather(*asked)


async def test_large_requests_and_answers() -> None:
    body = {**BODY, "messages": [{"role": "user", "content": "x" * 2**24}]}
    async with serving(EchoBackend()) as url, client(url) as model:
        assert len((await model.chat(body)).text[0]) == 2**24


@pytest.mark.parametrize("text", [object(), "\ud800"])
async def test_what_can_t_be_sent(text: Any) -> None:
    async with serving(EchoBackend()) as url, client(url) as model:
        with pytest.raises(RequestError, match="can't be sent") as caught:
            await model.chat({**BODY, "user": text})
    assert (caught.value.kind, caught.value.attempts) == ("bad_request", 0)


async def test_an_answer_that_is_none() -> None:
    class Empty(EchoBackend):
        async def chat(self, body: dict[str, Any]) -> dict[str, Any]:
            return {"id": "1"}

    async with serving(Empty()) as url, client(url) as model:
        with pytest.raises(RequestError, match="not a chat completion") as caught:
            await model.chat(BODY)
    assert (caught.value.kind, caught.value.attempts) == ("bad_response", 3)


async def _other_server(behaviour: Any) -> tuple[Any, str]:
    """A gRPC server that isn't ours."""
    handler = grpc.unary_unary_rpc_method_handler(behaviour)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("matrix.openai.v1.OpenAI", {"Chat": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, f"grpc://127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("code", "kind", "attempts"),
    [
        ("UNAVAILABLE", "connection", 3), ("INTERNAL", "http_500", 3), ("CANCELLED", "http_500", 3),
        ("UNKNOWN", "http_500", 3), ("DEADLINE_EXCEEDED", "http_504", 3), ("INVALID_ARGUMENT", "http_400", 1),
        ("UNIMPLEMENTED", "http_404", 1), ("PERMISSION_DENIED", "http_403", 1),
    ],
)  # fmt: skip
async def test_errors_that_don_t_say_what_they_are_over_http(code: str, kind: str, attempts: int) -> None:
    async def behaviour(_: bytes, context: Any) -> bytes:
        await context.abort(grpc.StatusCode[code], "somehow")
        return b""

    server, url = await _other_server(behaviour)
    async with client(url) as model:
        with pytest.raises(RequestError, match="somehow") as caught:
            await model.chat(BODY)
    await server.stop(None)
    assert (caught.value.kind, caught.value.attempts) == (kind, attempts)


async def test_an_answer_that_can_t_be_read() -> None:
    async def behaviour(_: bytes, __: Any) -> bytes:
        return b"\xff\xff"

    server, url = await _other_server(behaviour)
    async with client(url) as model:
        with pytest.raises(RequestError, match="can't be read") as caught:
            await model.chat(BODY)
        with pytest.raises(RequestError, match="UNIMPLEMENTED"):
            await model.complete(BODY)
    assert await served_models(url, None) is None
    await server.stop(None)
    assert (caught.value.kind, caught.value.attempts) == ("bad_response", 3)


async def test_an_http_server_is_no_grpc_server() -> None:
    async with (
        FakeEngine() as engine,
        client(endpoints=Endpoints([f"grpc://127.0.0.1:{engine.port}"], first_contact_s=0.5)) as model,
    ):
        with pytest.raises(RequestError, match=r"no server answered.*connect"):
            await model.chat(BODY)


async def test_models() -> None:
    async with serving(EchoBackend(), "key") as url:
        assert await served_models(url, "key") == ["echo"]
        with pytest.raises(RequestError, match="401"):
            await served_models(url, None)
    with pytest.raises(RequestError, match="failed to connect"):
        await served_models(url, None)


async def test_make_request() -> None:
    backend = EchoBackend()
    async with serving(backend, "key") as url:
        for given in (url, f"{url}/", url.removeprefix("grpc://"), lambda: url.removeprefix("grpc://")):
            row = await make_request(given, "echo", BODY, api_key="key", app_name="app")
            assert row["response"]["text"] == ["hello you"]
        wrong = await make_request(url, "echo", BODY, api_key="other")
    assert "401" in wrong["response"]["error"]
    away = await make_request(url, "echo", BODY, max_retries=1)
    assert "failed to connect" in away["response"]["error"]


def test_batches_one_after_another() -> None:
    """Each has an event loop of its own, and gRPC's own state outlives it."""
    backend = EchoBackend()
    with in_thread(backend) as url:
        for _ in range(3):
            rows = batch_requests(url, "echo", [{"prompt": str(number)} for number in range(50)])
            assert [row["response"]["text"] for row in rows] == [[str(number)] for number in range(50)]


async def test_a_batch_inside_of_a_running_loop(caplog: pytest.LogCaptureFixture) -> None:
    with in_thread(EchoBackend()) as url:
        async with client(url) as model:
            await model.chat(BODY)
            assert batch_requests(url, "echo", [{"prompt": "a"}] * 5, text_response_only=True) == ["a"] * 5
            await model.chat(BODY)


def test_generate_with_grpc() -> None:
    class Cli:
        grpc: Any = None

        def get_app_metadata(self, app_name: str) -> dict[str, Any]:
            return {"model_name": "echo", "api_key": "key", "endpoints": {"updater": None, "grpc": self.grpc}}

    cli = Cli()
    with pytest.raises(AppError, match=r"engine\.grpc=true"):
        generate(cli, "app", [{"prompt": "a"}], use_grpc=True)
    with in_thread(EchoBackend(), "key") as url:
        cli.grpc = [url]
        assert generate(cli, "app", [{"prompt": "a"}], use_grpc=True) == ["a"]


async def test_servers_of_both_kinds_are_refused() -> None:
    with pytest.raises(ConfigError, match="some by gRPC"):
        await make_request(["http://a/v1", "grpc://a:1"], "m", BODY)


def test_nothing_of_grpc_is_loaded_without_a_grpc_url() -> None:
    code = """
import asyncio, sys
from matrix.client.query_llm import make_request
asyncio.run(make_request("http://127.0.0.1:9/v1", "m", {"prompt": "a"}, max_retries=1))
print([name for name in sys.modules if name.partition(".")[0] in ("grpc", "google")])
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


async def until(holds: Any, seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.01)
