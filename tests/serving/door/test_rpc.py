from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from matrix.serving.door.figures import Figures
from matrix.serving.door.routes import Routes
from matrix.serving.door.rpc import RpcDoor, model_of
from matrix.serving.door.table import Table

METHOD = "/matrix.openai.v1.OpenAI/"
KEY = (("authorization", "Bearer k"),)
NOBODY = "grpc://127.0.0.1:9"

Behaviour = Callable[[bytes, Any], Any]


def request(model: str, rest: bytes = b"") -> bytes:
    """A message whose field 1 is the model."""
    return bytes([0x0A, len(model)]) + model.encode() + rest


class Replica(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers every method with what it was sent, or as it is told to.

    Attributes:
        requests: What it was sent, with the method and the metadata.
    """

    def __init__(self, behaviour: Behaviour | None = None) -> None:
        self.behaviour = behaviour
        self.requests: list[tuple[str, bytes, dict[str, Any]]] = []
        self.cancelled = asyncio.Event()

    def service(self, handler_call_details: Any) -> Any:
        method = handler_call_details.method.removeprefix(METHOD)

        async def answer(sent: bytes, context: Any) -> None:
            self.requests.append((method, sent, dict(context.invocation_metadata())))
            try:
                if self.behaviour is None:
                    await context.write(sent)
                else:
                    await self.behaviour(sent, context)
            except asyncio.CancelledError:
                self.cancelled.set()
                raise

        return grpc.unary_stream_rpc_method_handler(answer)

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((self,))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            yield f"grpc://127.0.0.1:{port}"
        finally:
            await server.stop(0)


class Caller:
    def __init__(self, table: Table, figures: Figures, channel: Any) -> None:
        self.table, self.figures, self._channel = table, figures, channel

    def tell(self, **apps: list[str]) -> None:
        told = [{"name": name, "model": f"model-{name}", "grpc_urls": urls} for name, urls in apps.items()]
        self.table.update(Routes.model_validate({"apps": told}))

    async def unary(self, sent: bytes, *metadata: tuple[str, str], method: str = "Chat", key: Any = KEY) -> bytes:
        answer: bytes = await self._channel.unary_unary(METHOD + method)(sent, metadata=(*key, *metadata), timeout=20)
        return answer

    def stream(self, sent: bytes) -> Any:
        return self._channel.unary_stream(METHOD + "ChatStream")(sent, metadata=KEY)


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    table, figures = Table(), Figures()
    door = RpcDoor("k", table, figures)
    port = await door.start("127.0.0.1", 0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Caller(table, figures, channel)
    await door.close(0)


def refusing(code: str, status: int | None, **more: str) -> Behaviour:
    async def refuse(_: bytes, context: Any) -> None:
        trailing = {} if status is None else {"http-status": str(status)}
        trailing |= {name.replace("_", "-"): value for name, value in more.items()}
        await context.abort(grpc.StatusCode[code], "no", tuple(trailing.items()))

    return refuse


async def test_calls_reach_their_app_unchanged(caller: Caller) -> None:
    a, b = Replica(), Replica()
    async with a.serve() as url_a, b.serve() as url_b:
        caller.tell(a=[url_a], b=[url_b])
        sent = request("model-a", b"\x12\x02hi")
        assert await caller.unary(sent) == sent
        assert await caller.unary(b"", ("application", "b"), method="Models") == b""
        assert await caller.unary(request("other"), ("application", "model-b")) == request("other")
        assert [method for method, _, _ in a.requests] == ["Chat"]
        assert [method for method, _, _ in b.requests] == ["Models", "Chat"]
        assert a.requests[0][2]["authorization"] == "Bearer k"


async def test_an_apps_name_becomes_its_models(caller: Caller) -> None:
    replica = Replica()
    async with replica.serve() as url:
        caller.tell(a=[url], b=[])
        # Of two fields 1 a reader takes the last.
        assert await caller.unary(request("a", b"\x12\x02hi")) == request("a", b"\x12\x02hi") + request("model-a")


@pytest.mark.parametrize(
    ("raw", "model"),
    [
        (b"", None),
        (b"\x12\x02hi", None),
        (b"\x0a\x80", None),
        (request("m", b"\x12\x02hi"), "m"),
        (b"\x0a\xac\x02" + b"x" * 300 + b"\x12", "x" * 300),
    ],
)
def test_the_model_is_read_off_the_bytes(raw: bytes, model: str | None) -> None:
    assert model_of(raw) == model


@pytest.mark.parametrize(
    ("sent", "key", "code", "words"),
    [
        (request("a"), (), "UNAUTHENTICATED", "authorization"),
        (request("a"), (("authorization", "Bearer x"),), "UNAUTHENTICATED", "authorization"),
        (request("c"), KEY, "NOT_FOUND", "there is no model 'c'; there is a, b, model-a, model-b"),
        (b"", KEY, "INVALID_ARGUMENT", "application"),
    ],
)
async def test_what_the_door_refuses(caller: Caller, sent: bytes, key: Any, code: str, words: str) -> None:
    caller.tell(a=[], b=[])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await caller.unary(sent, key=key)
    assert caught.value.code() is grpc.StatusCode[code]
    assert words in caught.value.details()


async def test_health_needs_no_key(caller: Caller) -> None:
    assert await caller.unary(b"", method="Health", key=()) == b""


@pytest.mark.parametrize(
    "fault",
    [
        refusing("INTERNAL", 500),
        refusing("UNAVAILABLE", 503),
        refusing("RESOURCE_EXHAUSTED", 429, retry_after="5"),
        refusing("UNAVAILABLE", None),
    ],
    ids=["500", "503", "429", "broken"],
)
async def test_what_a_replica_fails_at_another_one_answers(caller: Caller, fault: Behaviour) -> None:
    bad, good = Replica(fault), Replica()
    async with bad.serve() as url_bad, good.serve() as url_good:
        caller.tell(a=[NOBODY, url_bad, url_good])
        for _ in range(3):
            assert await caller.unary(request("a")) == request("a") + request("model-a")
        assert bad.requests


async def test_a_refusal_of_all_is_passed_on(caller: Caller) -> None:
    async with AsyncExitStack() as stack:
        replicas = [Replica(refusing("RESOURCE_EXHAUSTED", 429, retry_after="5")) for _ in range(4)]
        caller.tell(a=[await stack.enter_async_context(replica.serve()) for replica in replicas])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await caller.unary(request("model-a"))
        error = caught.value
        assert (error.code(), error.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "no")
        assert dict(error.trailing_metadata())["retry-after"] == "5"
        assert [len(replica.requests) for replica in replicas] == [1, 1, 1, 0]
        assert 'matrix_door_requests_total{app="a",status="RESOURCE_EXHAUSTED"} 1' in caller.figures.page()


async def test_a_call_waits_for_a_replica(caller: Caller) -> None:
    caller.tell(a=[])
    asked = asyncio.create_task(caller.unary(request("model-a")))
    async with asyncio.timeout(5):
        while caller.table.demand()["waiting"] != {"a": 1}:
            await asyncio.sleep(0.01)
    replica = Replica()
    async with replica.serve() as url:
        caller.tell(a=[url])
        assert await asked == request("model-a")
        assert caller.table.demand()["demand"] == {"a": 0}


async def test_a_stream_passes_piece_by_piece_and_breaks_as_it_did(caller: Caller) -> None:
    go = asyncio.Event()

    async def stream(_: bytes, context: Any) -> None:
        await context.write(b"1")
        await go.wait()
        await context.write(b"2")
        await context.abort(grpc.StatusCode.INTERNAL, "gone", (("http-status", "500"),))

    one, two = Replica(stream), Replica(stream)
    async with one.serve() as url_one, two.serve() as url_two:
        caller.tell(a=[url_one, url_two])
        call = caller.stream(request("model-a"))
        assert await call.read() == b"1"
        go.set()
        assert await call.read() == b"2"
        with pytest.raises(grpc.aio.AioRpcError, match="gone"):
            await call.read()
        assert len(one.requests) + len(two.requests) == 1
        assert dict(await call.initial_metadata())["x-matrix-replica"] in {url_one, url_two}


async def test_a_client_that_goes_away_ends_the_call_to_the_replica(caller: Caller) -> None:
    async def stream(_: bytes, context: Any) -> None:
        await context.write(b"1")
        await asyncio.sleep(60)

    replica = Replica(stream)
    async with replica.serve() as url:
        caller.tell(a=[url])
        call = caller.stream(request("model-a"))
        assert await call.read() == b"1"
        call.cancel()
        started_at = time.monotonic()
        async with asyncio.timeout(5):
            await replica.cancelled.wait()
            while caller.table.demand()["demand"] != {"a": 0}:
                await asyncio.sleep(0.01)
        assert time.monotonic() - started_at < 5
        assert 'matrix_door_requests_total{app="a",status="CANCELLED"} 1' in caller.figures.page()
