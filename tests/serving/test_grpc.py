"""The gRPC server around a backend, asked with the stub that everybody gets from the .proto."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from aiohttp import web

from matrix.serving import grpc_server
from matrix.serving.backend import ApiError, Backend
from matrix.serving.relay import RelayBackend
from matrix.wire import openai_pb2 as pb
from matrix.wire.convert import to_json, to_message
from matrix.wire.openai_pb2_grpc import OpenAIStub
from tests.checkout import ROOT
from tests.fake_engine import FakeEngine, Fault
from tests.serving_backend import EchoBackend

CHAT: dict[str, Any] = {"model": "echo", "messages": [{"role": "user", "content": "hello you"}], "temperature": 0}


@asynccontextmanager
async def serving(backend: Backend, api_key: str | None = None) -> AsyncIterator[Any]:
    await backend.start()
    server = await grpc_server.start(backend, "127.0.0.1", 0, api_key)
    try:
        options = [("grpc.max_receive_message_length", -1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options) as channel:
            yield OpenAIStub(channel)
    finally:
        await server.stop()
        await backend.close()


def chat(text: str = "hello you", **fields: Any) -> pb.ChatRequest:
    return to_message(pb.ChatRequest, {**CHAT, "messages": [{"role": "user", "content": text}], **fields})


def status(error: grpc.aio.AioRpcError) -> tuple[Any, dict[str, str]]:
    return error.code(), dict(error.trailing_metadata() or ())


async def test_all_methods() -> None:
    backend = EchoBackend()
    async with serving(backend) as stub:
        answer = to_json(await stub.Chat(chat(seed=0, mine={"a": 2**60})))
        text = await stub.Complete(pb.CompletionRequest(prompt="once"))
        vectors = await stub.Embed(pb.EmbeddingRequest(input="x"))
        models = await stub.Models(pb.ModelsRequest())
        await stub.Health(pb.HealthRequest())
        chunks = [to_json(chunk) async for chunk in stub.ChatStream(chat("a b"))]
        texts = [chunk.choices[0].text async for chunk in stub.CompleteStream(pb.CompletionRequest(prompt="c d"))]
        assert answer == await backend.chat(CHAT)
    assert backend.requests[0] == {**CHAT, "seed": 0, "mine": {"a": 2**60}}
    assert text.choices[0].text == "once"
    assert list(vectors.data[0].embedding) == [0.5, -1.25]
    assert [model.id for model in models.data] == ["echo"]
    assert [chunk["choices"][0] for chunk in chunks] == [
        {"index": 0, "delta": {"content": "a"}, "finish_reason": None},
        {"index": 0, "delta": {"content": "b"}, "finish_reason": None},
    ]
    assert texts == ["c", "d"]


async def test_without_the_key_there_is_only_health() -> None:
    backend = EchoBackend()
    async with serving(backend, "sesame") as stub:
        for metadata in (None, (("authorization", "Bearer wrong"),), (("authorization", "sesame"),)):
            for ask in (stub.Chat(chat(), metadata=metadata), stub.Models(pb.ModelsRequest(), metadata=metadata)):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await ask
                assert status(caught.value)[0] is grpc.StatusCode.UNAUTHENTICATED
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.ChatStream(chat(), metadata=metadata).read()
        await stub.Health(pb.HealthRequest())
        assert not backend.requests
        await stub.Chat(chat(), metadata=(("authorization", "Bearer sesame"),))
    assert len(backend.requests) == 1


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (400, "INVALID_ARGUMENT"), (401, "UNAUTHENTICATED"), (403, "PERMISSION_DENIED"), (404, "NOT_FOUND"),
        (408, "DEADLINE_EXCEEDED"), (413, "INVALID_ARGUMENT"), (429, "RESOURCE_EXHAUSTED"), (500, "INTERNAL"),
        (502, "UNAVAILABLE"), (503, "UNAVAILABLE"), (504, "DEADLINE_EXCEEDED"), (529, "INTERNAL"),
    ],
)  # fmt: skip
async def test_errors(number: int, code: str) -> None:
    error = ApiError(number, "ä" * 9000, retry_after_s=1.5 if number in {429, 503} else None, kind="mine")
    async with serving(EchoBackend(fail=lambda _: error)) as stub:
        for ask in (stub.Chat(chat()), stub.ChatStream(chat()).read()):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ask
            trailing = {"http-status": str(number), "error-type": "mine"}
            retry = {"retry-after": "1.5"} if number in {429, 503} else {}
            assert status(caught.value) == (grpc.StatusCode[code], trailing | retry)
            assert caught.value.details() == "ä" * 1000


async def test_what_nobody_expected_is_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(EchoBackend(fail=lambda _: KeyError("secret"))) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Chat(chat())
        assert status(caught.value)[1]["http-status"] == "500"
        assert "secret" not in str(caught.value.details())
        assert "secret" in caplog.text
    async with serving(EchoBackend()) as stub:
        stream = stub.ChatStream(chat("a break b"))
        assert [(await stream.read()).choices[0].delta.content for _ in range(2)] == ["a", "break"]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
    assert caught.value.code() is grpc.StatusCode.INTERNAL


async def test_a_field_that_should_be_json() -> None:
    async with serving(EchoBackend()) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Chat(pb.ChatRequest(extra={"a": "{"}))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_health_says_why_not() -> None:
    backend = EchoBackend()
    backend.trouble = "no GPU"
    async with serving(backend) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Health(pb.HealthRequest())
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.UNAVAILABLE, "no GPU")


@pytest.mark.parametrize("streams", [False, True])
async def test_a_client_that_leaves_ends_the_work(streams: bool) -> None:
    backend = EchoBackend(latency_s=30)
    async with serving(backend) as stub:
        ask = stub.ChatStream(chat()) if streams else stub.Chat(chat())
        waiting = asyncio.ensure_future(ask.read() if streams else ask)
        await until(lambda: backend.in_flight == 1)
        ask.cancel()
        await until(lambda: backend.in_flight == 0)
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert backend.cancelled == 1


async def test_large_messages() -> None:
    async with serving(EchoBackend()) as stub:
        answer = await stub.Chat(chat("x" * 2**24))
    assert len(answer.choices[0].message.content) == 2**24


async def test_a_port_that_is_taken() -> None:
    server = await grpc_server.start(EchoBackend(), "127.0.0.1", 0, None)
    with pytest.raises(OSError, match="can't listen"):
        await grpc_server.start(EchoBackend(), "127.0.0.1", server.port, None)
    await server.stop()


async def test_a_relay() -> None:
    async with FakeEngine(api_key="key") as engine, serving(RelayBackend(engine.url, "key")) as stub:
        body = {**CHAT, "logprobs": True, "n": 2, "mine": [1, None], "stream": True, "stream_options": {}}
        answer = to_json(await stub.Chat(to_message(pb.ChatRequest, body)))
        assert engine.requests == [{**CHAT, "logprobs": True, "n": 2, "mine": [1, None]}]
        assert [choice["message"]["content"] for choice in answer["choices"]] == ["hello you"] * 2
        assert answer["choices"][0]["logprobs"]["content"][1]["token"] == "you"
        assert answer["usage"]["total_tokens"] == 6
        assert [model.id for model in (await stub.Models(pb.ModelsRequest())).data] == ["fake"]
        await stub.Health(pb.HealthRequest())


@pytest.mark.parametrize(
    ("fault", "trailing"),
    [
        (Fault.http(429, "busy", {"Retry-After": "7"}), ("429", "Injected", "7")),
        (Fault.http(400, "too long"), ("400", "Injected", None)),
        (Fault.http(503, body="<html>"), ("503", "server_error", None)),
        (Fault.garbage(), ("502", "server_error", None)),
        (Fault.half(), ("502", "server_error", None)),
        (Fault.reset(), ("502", "server_error", None)),
    ],
)
async def test_a_relay_passes_errors_on(fault: Fault, trailing: tuple[str | None, ...]) -> None:
    async with FakeEngine(fail=lambda _: fault) as engine, serving(RelayBackend(engine.url, None)) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Chat(chat())
    said = status(caught.value)[1]
    assert (said["http-status"], said["error-type"], said.get("retry-after")) == trailing


async def test_a_relay_ends_what_its_client_left() -> None:
    async with FakeEngine(latency_s=30) as engine, serving(RelayBackend(engine.url, None)) as stub:
        ask = stub.Chat(chat())
        await until(lambda: engine.in_flight == 1)
        ask.cancel()
        await until(lambda: engine.in_flight == 0)


async def test_a_relay_without_a_server() -> None:
    async with serving(RelayBackend("http://127.0.0.1:9/v1", None)) as stub:
        for ask in (stub.Chat(chat()), stub.Health(pb.HealthRequest())):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ask
            assert status(caught.value)[1]["http-status"] == "503"


@asynccontextmanager
async def streaming(*lines: str, status: int = 200) -> AsyncIterator[tuple[str, list[Any]]]:
    """A server that answers each request with these events; its URL, and the bodies that it got."""
    bodies: list[Any] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        bodies.append(await request.json())
        reply = web.StreamResponse(status=status, headers={"Content-Type": "text/event-stream"})
        await reply.prepare(request)
        for line in lines:
            await reply.write(line.encode())
            await asyncio.sleep(0.01)
        return reply

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1", bodies
    finally:
        await runner.cleanup()


async def test_a_relay_streams() -> None:
    long = "x" * 300_000
    events = ('data: {"choices": [{"delta": {"cont', 'ent": "a"}}]}\r\n\r\n: ping\n\n')
    events += (f'data:{{"choices": [{{"delta": {{"content": "{long}"}}}}]}}\n\ndata: [DONE]\n\n', "data: {}\n\n")
    async with streaming(*events) as (url, bodies), serving(RelayBackend(url, None)) as stub:
        stream = stub.ChatStream(chat(stream_options={"include_usage": True}))
        texts = [chunk.choices[0].delta.content async for chunk in stream]
    assert texts == ["a", long]
    assert bodies[0]["stream"] is True
    assert bodies[0]["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    ("end", "number", "message"),
    [
        ('data: {"error": {"message": "out of memory", "type": "E", "code": 507}}\n\n', "507", "out of memory"),
        ("", "502", "broke off"),
        ("data: {\n\n", "502", "isn't JSON"),
    ],
)
async def test_a_relayed_stream_that_breaks(end: str, number: str, message: str) -> None:
    events = ('data: {"choices": [{"delta": {"content": "a"}}]}\n\n', end)
    async with streaming(*events) as (url, _), serving(RelayBackend(url, None)) as stub:
        stream = stub.ChatStream(chat())
        assert (await stream.read()).choices[0].delta.content == "a"
        with pytest.raises(grpc.aio.AioRpcError, match=message) as caught:
            await stream.read()
    assert status(caught.value)[1]["http-status"] == number


async def test_the_sidecar() -> None:
    async with FakeEngine(api_key="key") as engine:
        command = [sys.executable, "-m", "matrix.serving.grpc_sidecar", "--upstream", engine.root]
        environment = {**os.environ, "MATRIX_API_KEY": "key", "PYTHONPATH": str(ROOT)}
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, env=environment)
        assert process.stdout is not None
        url = (await process.stdout.readline()).decode().strip()
        async with grpc.aio.insecure_channel(url.removeprefix("grpc://")) as channel:
            stub = OpenAIStub(channel)
            answer = await stub.Chat(chat(), metadata=(("authorization", "Bearer key"),))
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.Chat(chat())
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) == 0
    assert answer.choices[0].message.content == "hello you"


async def until(holds: Any, seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.01)
