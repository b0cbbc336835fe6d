from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from matrix.serving.door.scrape import TIMEOUT_S
from tests.serving.door.doors import AUTH, Client, route
from tests.serving.test_metric_names import VLLM


@asynccontextmanager
async def metrics_server(answer: Callable[[web.Request], Awaitable[web.Response]]) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/metrics", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_one_page_of_replicas_nodes_and_the_door(client: Client) -> None:
    keys: list[str | None] = []

    async def replica(request: web.Request) -> web.Response:
        keys.append(request.headers.get("Authorization"))
        return web.Response(text=VLLM)

    async def node(request: web.Request) -> web.Response:
        keys.append(request.headers.get("Authorization"))
        return web.Response(text="# TYPE ray_tasks gauge\nray_tasks 3\n")

    async with metrics_server(replica) as a, metrics_server(node) as n:
        nodes = [{"name": "n1", "metrics_url": f"{n}/metrics"}]
        await client.tell(route("a", f"{a}/v1"), route("empty"), nodes=nodes)
        answer = await client.get("/metrics")
        asked = len(keys)
        without_nodes = (await client.get("/metrics?nodes=0")).content
        assert keys[asked:] == [AUTH["Authorization"]], "nodes aren't even asked"
    assert "ray_tasks" not in without_nodes
    assert "matrix_requests_running" in without_nodes
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    found = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.content)
        for sample in family.samples
    }
    name = a.removeprefix("http://")
    assert found["matrix_requests_running", (("app", "a"), ("replica", name))] == 5
    assert found["ray_tasks", (("node", "n1"),)] == 3
    assert found["matrix_replicas", (("app", "empty"),)] == 0
    assert found["matrix_scrape_up", (("app", "a"), ("replica", name))] == 1
    assert sorted(keys[:asked], key=str) == [AUTH["Authorization"], None]


async def test_what_does_not_answer_is_down_and_delays_nobody(client: Client) -> None:
    async def slow(_: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    async def broken(_: web.Request) -> web.Response:
        return web.Response(status=500, text="vllm:num_requests_running 1")

    async def good(_: web.Request) -> web.Response:
        return web.Response(text="up_and_well 1\n")

    async with metrics_server(slow) as s, metrics_server(broken) as b, metrics_server(good) as g:
        await client.tell(route("a", f"{s}/v1", f"{b}/v1", "http://127.0.0.1:9/v1", f"{g}/v1"))
        started_at = time.monotonic()
        page = (await client.get("/metrics")).content
        assert time.monotonic() - started_at < TIMEOUT_S + 5
    assert page.count("matrix_scrape_up{") == 4
    ups = [line.rpartition(" ")[2] for line in page.splitlines() if line.startswith("matrix_scrape_up{")]
    assert ups == ["0", "0", "0", "1"]
    assert "up_and_well{" in page
    assert "num_requests_running" not in page


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_an_app_is_reached_by_other_methods(client: Client, method: str) -> None:
    async def replica(_: web.Request) -> web.Response:
        return web.Response(text="x 1\n")

    async with metrics_server(replica) as a:
        await client.tell(route("a", f"{a}/v1"))
        async with client.session.request(method, f"{client.url}/a/metrics", headers=AUTH) as reply:
            assert reply.status == 200
            assert await reply.text() == ("x 1\n" if method == "GET" else "")
            assert reply.headers["Content-Length"] == "4"
