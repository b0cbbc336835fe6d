from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack

import aiohttp
import pytest

from tests.fake_engine import FakeEngine, Fault
from tests.serving.door.doors import AUTH, CHAT, Client, StreamingServer, route

NOBODY = "http://127.0.0.1:9/v1"


@pytest.mark.parametrize(
    "fault",
    [
        Fault.http(500),
        Fault.http(503),
        Fault.http(429),
        Fault.reset(),
        Fault.disconnect(),
        Fault.half(),
        Fault.not_http(),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}",
)
async def test_what_a_replica_fails_at_another_one_answers(client: Client, fault: Fault) -> None:
    async with FakeEngine(fail=lambda _: fault) as bad, FakeEngine() as good:
        await client.tell(route("a", bad.url, good.url))
        for _ in range(3):
            answer = await client.chat()
            assert (answer.status, answer.replica) == (200, f"127.0.0.1:{good.port}")
        assert bad.requests


@pytest.mark.parametrize("status", [500, 502, 503, 429])
async def test_a_refusal_of_all_replicas_is_passed_on_with_its_body(client: Client, status: int) -> None:
    fault = Fault.http(status, "no more", headers={"Retry-After": "7"})
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(FakeEngine(fail=lambda _: fault)) for _ in range(5)]
        await client.tell(route("a", *(engine.url for engine in engines)))
        answer = await client.chat()
        assert (answer.status, answer.message, answer.headers["Retry-After"]) == (status, "no more", "7")
        assert [len(engine.requests) for engine in engines] == [1, 1, 1, 0, 0]


async def test_a_refusal_of_the_requests_own_fault_is_not_tried_again(client: Client) -> None:
    async with FakeEngine(fail=lambda _: Fault.http(400, "too long")) as one, FakeEngine() as two:
        await client.tell(route("a", one.url, two.url))
        answer = await client.chat()
        assert (answer.status, answer.message) == (400, "too long")
        assert not two.requests


async def test_a_connection_that_always_breaks_is_given_up(client: Client) -> None:
    async with FakeEngine(fail=lambda _: Fault.reset()) as engine:
        await client.tell(route("a", engine.url))
        answer = await client.chat()
        assert answer.status == 502
        assert len(engine.requests) == 3


async def test_a_replica_that_nobody_reaches_costs_no_try(client: Client) -> None:
    async with FakeEngine(fail=[Fault.reset(), Fault.reset()]) as engine:
        await client.tell(route("a", NOBODY, engine.url))
        assert (await client.chat()).status == 200
        assert len(engine.requests) == 3


async def test_a_request_waits_for_the_first_replica(client: Client) -> None:
    await client.tell(route("a", min_replicas=0))
    asked = asyncio.create_task(client.chat())
    async with FakeEngine() as engine:
        async with asyncio.timeout(5):
            while (told := await client.tell(route("a", min_replicas=0)))["waiting"] != {"a": 1}:
                await asyncio.sleep(0.01)
        assert told["demand"] == {"a": 1}
        assert told["idle_s"] == {"a": 0}
        await client.tell(route("a", engine.url, min_replicas=0))
        assert (await asked).status == 200
        told = await client.tell(route("a", engine.url, min_replicas=0), version=7)
        assert (told["demand"], told["waiting"], told["version"]) == ({"a": 0}, {"a": 0}, 7)
        assert 0 < told["idle_s"]["a"] < 5


async def test_a_request_waits_for_a_replica_that_is_replaced(client: Client) -> None:
    await client.tell(route("a", NOBODY))
    asked = asyncio.create_task(client.chat())
    await asyncio.sleep(0.3)
    async with FakeEngine() as engine:
        await client.tell(route("a", engine.url))
        assert (await asked).status == 200


async def test_a_request_waits_for_a_server_that_starts_again(client: Client) -> None:
    engine = FakeEngine()
    async with engine:
        await client.tell(route("a", engine.url))
        assert (await client.chat()).status == 200
    asked = asyncio.create_task(client.chat())
    await asyncio.sleep(0.3)
    async with engine:
        assert (await asked).status == 200


async def test_who_has_waited_long_enough_is_told_why(client: Client) -> None:
    await client.tell(route("asleep"), route("away", NOBODY))
    answer = await client.chat("asleep", **{"x-request-timeout": "0.05"})
    assert (answer.status, answer.message) == (503, "app 'asleep' has no replica that is ready")
    assert int(answer.headers["Retry-After"]) > 0
    answer = await client.chat("away", **{"x-request-timeout": "0.05"})
    assert answer.status == 503
    assert "can be reached: http://127.0.0.1:9/v1" in answer.message
    assert (await client.chat("away", **{"x-request-timeout": "soon"})).status == 400
    told = await client.tell(route("asleep"), route("away"))
    assert told["demand"] == {"asleep": 0, "away": 0}


async def test_who_waits_for_an_app_that_is_removed_is_told(client: Client) -> None:
    await client.tell(route("a"))
    asked = asyncio.create_task(client.chat())
    await asyncio.sleep(0.1)
    await client.tell()
    answer = await asked
    assert (answer.status, answer.message) == (404, "app 'a' has been removed")


async def test_nobody_waits_for_an_app_that_has_failed(client: Client) -> None:
    await client.tell(route("a"))
    asked = asyncio.create_task(client.chat())
    await asyncio.sleep(0.1)
    await client.tell(route("a", failed="no such file"))
    for answer in (await asked, await client.chat()):
        assert (answer.status, answer.message) == (503, "app 'a' has failed: no such file")
    async with FakeEngine() as mended:
        await client.tell(route("a", mended.url))
        assert (await client.chat()).status == 200


async def test_a_replica_that_drains_ends_its_requests_and_gets_no_more(client: Client) -> None:
    async with FakeEngine(latency_s=0.5) as old, FakeEngine() as new:
        await client.tell(route("a", old.url))
        asked = asyncio.create_task(client.chat())
        await asyncio.sleep(0.1)
        await client.tell(route("a", new.url))
        assert (await client.chat()).replica == f"127.0.0.1:{new.port}"
        answer = await asked
        assert (answer.status, answer.replica) == (200, f"127.0.0.1:{old.port}")


async def test_sessions_stay_with_their_replica(client: Client) -> None:
    async with FakeEngine() as one, FakeEngine() as two:
        await client.tell(route("a", one.url, two.url))
        for header in ("x-session-id", "serve_multiplexed_model_id"):
            landed: set[tuple[int, str]] = set()
            for _ in range(3):
                landed |= {(session, (await client.chat(**{header: f"s{session}"})).replica) for session in range(8)}
            assert len(landed) == 8
            assert len({replica for _, replica in landed}) == 2


async def test_requests_go_where_there_are_least(client: Client) -> None:
    async with FakeEngine(latency_s=0.2) as one, FakeEngine(latency_s=0.2) as two:
        await client.tell(route("a", one.url, two.url))
        answers = await asyncio.gather(*(client.chat() for _ in range(20)))
        assert set(Counter(answer.replica for answer in answers).values()) == {10}


async def test_a_stream_passes_piece_by_piece(client: Client) -> None:
    server = StreamingServer()
    async with server.serve() as url:
        await client.tell(route("a", url))
        server.say(b"data: 1\n\n")
        async with client.session.post(
            f"{client.url}/v1/chat/completions", json={"model": "a", **CHAT}, headers=AUTH
        ) as reply:
            assert reply.content_type == "text/event-stream"
            for number in (1, 2, 3):
                async with asyncio.timeout(5):
                    assert await reply.content.readuntil(b"\n\n") == b"data: %d\n\n" % number
                server.say(b"data: %d\n\n" % (number + 1) if number < 3 else None)
            assert await reply.read() == b""


async def test_a_stream_that_breaks_before_its_first_piece_is_asked_for_again(client: Client) -> None:
    server = StreamingServer()
    async with server.serve() as url, FakeEngine() as engine:
        await client.tell(route("a", url, engine.url))
        server.say(b"")
        answer = await client.chat()
        assert (answer.status, answer.replica) == (200, f"127.0.0.1:{engine.port}")


async def test_a_stream_that_breaks_later_breaks_for_the_client_too(client: Client) -> None:
    server = StreamingServer()
    async with server.serve() as url, FakeEngine() as engine:
        await client.tell(route("a", url, engine.url))
        server.say(b"data: 1\n\n")
        async with client.session.post(
            f"{client.url}/v1/chat/completions", json={"model": "a", **CHAT}, headers=AUTH
        ) as reply:
            assert await reply.content.readuntil(b"\n\n") == b"data: 1\n\n"
            server.say(b"")
            with pytest.raises(aiohttp.ClientPayloadError):
                await reply.read()
        assert not engine.requests
        page = (await client.get("/metrics")).content
        assert 'matrix_door_requests_total{app="a",status="502"} 1' in page


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_client_that_goes_away_ends_the_request_to_the_replica(client: Client, streaming: bool) -> None:
    server = StreamingServer()
    async with server.serve() as url:
        await client.tell(route("a", url))
        if streaming:
            server.say(b"data: 1\n\n")
        asked = asyncio.create_task(client.chat())
        await server.started.wait()
        await asyncio.sleep(0.1)
        asked.cancel()
        async with asyncio.timeout(5):
            await server.gone.wait()
            while (await client.tell(route("a", url)))["demand"] != {"a": 0}:
                await asyncio.sleep(0.01)
        page = (await client.get("/metrics")).content
        assert 'matrix_door_requests_total{app="a",status="499"} 1' in page


async def test_a_client_that_goes_away_while_it_waits_leaves_the_queue(client: Client) -> None:
    await client.tell(route("a"))
    asked = asyncio.create_task(client.chat())
    await asyncio.sleep(0.1)
    asked.cancel()
    async with asyncio.timeout(5):
        while (await client.tell(route("a")))["demand"] != {"a": 0}:
            await asyncio.sleep(0.01)


async def test_thousands_in_flight_all_come_back(client: Client) -> None:
    count = 3000
    await client.tell(route("a", min_replicas=0))
    async with FakeEngine(latency_s=0.5) as one, FakeEngine(latency_s=0.5) as two:
        asked = [asyncio.create_task(client.chat()) for _ in range(count)]
        async with asyncio.timeout(30):
            while (await client.tell(route("a")))["waiting"] != {"a": count}:
                await asyncio.sleep(0.05)
        told = await client.tell(route("a", one.url, two.url))
        assert told["demand"] == {"a": count}
        answers = await asyncio.gather(*asked)
        assert Counter(answer.status for answer in answers) == {200: count}
        assert len(one.requests) == len(two.requests) == count // 2
