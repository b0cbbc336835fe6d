"""A client that goes on asking an app until its input ends, each request once: `python -m tests.integration.load URL MODEL TOKENS AT_A_TIME`.

The key is in OPENAI_API_KEY. Prints a JSON object: `requests`, `failures` (what was answered instead of 200), `p50_s`,
`p99_s`, `longest_s`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time

import aiohttp


async def main(url: str, model: str, max_tokens: int, at_a_time: int) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().run_in_executor(None, lambda: (sys.stdin.read(), loop.call_soon_threadsafe(stop.set)))
    loop = asyncio.get_running_loop()
    seconds: list[float] = []
    failures: list[str] = []
    body = {"model": model, "messages": [{"role": "user", "content": "go on"}], "max_tokens": max_tokens}
    headers = {"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"}

    async def ask_on(session: aiohttp.ClientSession) -> None:
        while not stop.is_set():
            began = time.monotonic()
            try:
                async with session.post(f"{url}/chat/completions", json=body, headers=headers) as answer:
                    text = await answer.text()
                    if answer.status != 200:
                        failures.append(f"{answer.status} {text[:200]}")
            except aiohttp.ClientError as error:
                failures.append(repr(error))
            seconds.append(time.monotonic() - began)

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session:
        print("asking", flush=True)
        await asyncio.gather(*(ask_on(session) for _ in range(at_a_time)))
    seconds.sort()
    figures = {
        "p50_s": seconds[len(seconds) // 2],
        "p99_s": seconds[len(seconds) * 99 // 100],
        "longest_s": seconds[-1],
    }
    print(json.dumps({"requests": len(seconds), "failures": failures, **figures}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
