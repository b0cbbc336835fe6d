"""Drivers without a framework for `in_flight.py`: `python latency_plain.py ROWS IN_FLIGHT [--url URL]`.

Five turns a row, one after another: each sleeps as long as was drawn, or asks a server by aiohttp. What comes of a row
is thrown away.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import resource
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import latency
import uvloop

sys.path.insert(0, str(Path(__file__).parent.parent))
from clients import Target, plain_aiohttp

Turn = Callable[[int, int], Awaitable[object]]


async def drive(rows: int, in_flight: int, turn: Turn) -> list[float]:
    """Work all rows through; returns when turns ended."""
    numbers, ended = iter(range(rows)), []

    async def worker() -> None:
        for number in numbers:
            history: list[dict[str, object]] = []
            for at in range(latency.HOPS):
                text, now = await turn(number, at), time.time()
                history.append({"agent": "role", "text": text, "timestamp": now})
                ended.append(now)

    await asyncio.gather(*(worker() for _ in range(in_flight)))
    return ended


async def measure(options: argparse.Namespace) -> None:
    """Work through, and print what it took."""
    async with AsyncExitStack() as opened:
        if options.url:
            body = {
                "model": "sim",
                "messages": [{"role": "user", "content": "What is the trade discount?"}],
                "max_tokens": 16,
            }
            send = await opened.enter_async_context(plain_aiohttp(Target(options.url, body, None)))

            async def turn(number: int, at: int) -> object:
                del number, at
                return await send()
        else:

            async def turn(number: int, at: int) -> object:
                await asyncio.sleep(latency.draw(number, at))
                return "The discount is two dollars."

        began = time.time()
        print(json.dumps({"began": began, "ended": await drive(options.rows, options.in_flight, turn)}), flush=True)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=int)
    parser.add_argument("in_flight", type=int)
    parser.add_argument("--url")
    options = parser.parse_args()
    # A connection is an open file.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    uvloop.run(measure(options))


if __name__ == "__main__":
    main()
