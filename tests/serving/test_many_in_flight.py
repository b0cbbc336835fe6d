"""Thousands of requests in flight in one server process."""

from __future__ import annotations

import asyncio
import time

import aiohttp

from tests.serving.server_process import KEY, serving

COUNT = 3000


async def test_thousands_in_flight() -> None:
    """All of them are taken at the same time: one after another, or in parts, they would take longer."""
    body = {"messages": [{"role": "user", "content": "Hello?"}], "max_tokens": 4}
    with serving(first_token_s=4, output_tokens={"kind": "uniform", "mean": 8, "std": 2}) as server:
        connector = aiohttp.TCPConnector(limit=0)
        headers = {"Authorization": f"Bearer {KEY}"}
        async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

            async def chat(number: int) -> int:
                streamed = number % 10 == 0
                async with session.post(f"{server.url}/chat/completions", json={**body, "stream": streamed}) as answer:
                    assert answer.status == 200
                    if not streamed:
                        return int((await answer.json())["usage"]["completion_tokens"])
                    lines = (await answer.text()).split("\n\n")
                    assert lines[-2] == "data: [DONE]"
                    # Role and four tokens.
                    return len(lines) - 3

            began = time.perf_counter()
            tokens = await asyncio.gather(*map(chat, range(COUNT)))
            seconds = time.perf_counter() - began
            async with session.get(server.url.removesuffix("v1") + "metrics") as answer:
                metrics = await answer.text()
    assert tokens == [4] * COUNT
    # 4 at best; most of it is for a machine that is busy with other things. 400 at a time would take longer.
    assert seconds < 30
    assert f'matrix_requests_total{{status="200"}} {COUNT}\n' in metrics
    assert f"matrix_generation_tokens_total {4 * COUNT}\n" in metrics
    assert "matrix_requests_running 0\n" in metrics
