"""The baselines of `paper.py`, without a framework: `python paper_plain.py HOW SCENARIO ROWS URL --in-flight N`.

- `rows`: drivers in one process; each takes one row after another through its steps;
- `batches`: a batch of rows at a time takes its first step, all wait for the slowest, those that go on take the second,
  and so on; `--side-by-side N` batches are under way at a time, of the same number of rows in all.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from itertools import islice
from pathlib import Path

import paper_rows
import uvloop

sys.path.insert(0, str(Path(__file__).parent.parent))
from clients import Target, plain_aiohttp

Take = Callable[[paper_rows.Step], Awaitable[None]]


async def by_rows(scenario: str, rows: int, in_flight: int, take: Take) -> None:
    """Each row on its own."""
    numbers = iter(range(rows))

    async def driver() -> None:
        for number in numbers:
            for step in paper_rows.steps(scenario, number):
                await take(step)

    await asyncio.gather(*(driver() for _ in range(in_flight)))


async def by_batches(scenario: str, rows: int, in_flight: int, side_by_side: int, take: Take) -> None:
    """A batch at a time, a step at a time."""
    numbers = iter(range(rows))

    async def driver() -> None:
        while batch := list(islice(numbers, in_flight // side_by_side)):
            left = [paper_rows.steps(scenario, number) for number in batch]
            while left:
                await asyncio.gather(*(take(row.pop(0)) for row in left))
                left = [row for row in left if row]

    await asyncio.gather(*(driver() for _ in range(side_by_side)))


async def measure(options: argparse.Namespace) -> None:
    """Work through, and print what it took."""
    body = {"model": "sim", "messages": [{"role": "user", "content": "Go on."}]}
    target = Target(options.url, body, None)
    async with plain_aiohttp(target) as send:

        async def take(step: paper_rows.Step) -> None:
            kind, amount = step
            if kind == "tool":
                await asyncio.sleep(amount)
                return
            # Read when it is sent, before anybody else has a turn.
            body["max_tokens"] = int(amount)
            await send()

        began = time.time()
        if options.how == "rows":
            await by_rows(options.scenario, options.rows, options.in_flight, take)
        else:
            await by_batches(options.scenario, options.rows, options.in_flight, options.side_by_side, take)
        print(json.dumps({"began": began, "ended": time.time()}), flush=True)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("how", choices=("rows", "batches"))
    parser.add_argument("scenario", choices=paper_rows.SCENARIOS)
    parser.add_argument("rows", type=int)
    parser.add_argument("url")
    parser.add_argument("--in-flight", type=int, default=512)
    parser.add_argument("--side-by-side", type=int, default=1)
    uvloop.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
