"""`serving.py add`: what the clients of an app notice while another app is added and removed.

The app is a simulated engine that takes 0.2 s for each request, always, so that all that is longer is somebody's fault.
64 clients ask it without a pause; each request is sent once, by plain aiohttp without retries, and counts to the part
of the round in which it ended:

- before: nothing else happens;
- adding: from the start of `matrix deploy_applications app=other` to its exit (it waits until the app is healthy);
- removing: the same with `--action remove`.

The command itself shares the two cores with clients, engine and Ray. Once straight to the replica, once through the
door.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Self

import aiohttp
import uvloop
from kept import Kept
from processes import say
from tables import Runs, ratio, show

PLAYED = ("engine=simulated", "engine.first_token_s=0.05", "engine.token_s=0.01", "engine.output_tokens=16")
APP = (*PLAYED, "engine.cpus=0.5", "model=api", "model.name=sim")
OTHER = ("apps.other.engine=simulated", "apps.other.engine.cpus=0.5", "apps.other.model=api", "apps.other.model.name=o")
AT_A_TIME = 64
BEFORE_S = 8.0
COLUMNS = {
    "requests": ("requests", ",.0f"),
    "failed": ("failed", ",.0f"),
    "p50_ms": ("p50 ms", ",.1f"),
    "p99_ms": ("p99 ms", ",.1f"),
    "longest_ms": ("longest ms", ",.1f"),
    "seconds": ("seconds", ".1f"),
}


class Load:
    """Clients of an app, until the `async with` block ends.

    Args:
        url: Base URL.
        key: API key.
    """

    def __init__(self, url: str, key: str) -> None:
        self._url = f"{url}/chat/completions"
        self._headers = {"Authorization": f"Bearer {key}"}
        self._ended: list[tuple[float, str]] = []
        """Seconds that each request took, and what was wrong with its answer."""
        self._stop = False

    async def during(self, what: Awaitable[object]) -> dict[str, float]:
        """Figures of the requests that ended while something happened."""
        first, began = len(self._ended), time.monotonic()
        await what
        seconds, part = time.monotonic() - began, self._ended[first:]
        wrong = [trouble for _, trouble in part if trouble]
        for trouble in wrong[:5]:
            say(f"  failed: {trouble}")
        ordered = sorted(took for took, _ in part)
        return {
            "requests": len(ordered),
            "failed": len(wrong),
            "p50_ms": ordered[len(ordered) // 2] * 1e3,
            "p99_ms": ordered[len(ordered) * 99 // 100] * 1e3,
            "longest_ms": ordered[-1] * 1e3,
            "seconds": seconds,
        }

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=60)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), headers=self._headers, timeout=timeout
        )
        self._clients = [asyncio.create_task(self._ask_on()) for _ in range(AT_A_TIME)]
        # Connections are made and the first answers there before anything is counted.
        await asyncio.sleep(1)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop = True
        await asyncio.gather(*self._clients)
        await self._session.close()

    async def _ask_on(self) -> None:
        body = {"model": "sim", "messages": [{"role": "user", "content": "go on"}]}
        while not self._stop:
            began, trouble = time.monotonic(), ""
            try:
                async with self._session.post(self._url, json=body) as answer:
                    text = await answer.text()
                    if answer.status != 200:
                        trouble = f"{answer.status} {text[:200]}"
            except (aiohttp.ClientError, TimeoutError) as error:
                trouble = repr(error)
            self._ended.append((time.monotonic() - began, trouble))


def measure(repeat: int, scale: float) -> dict[str, Runs]:
    """Measure both ways in turns, and print a table for each."""
    results: dict[str, Runs] = {}
    with Kept() as cluster:
        say("deploying ...")
        cluster.deploy(*APP)
        app = cluster.metadata("sim")
        ways = {"data plane": app["endpoints"]["workers"][0], "front door": app["endpoints"]["head"]}
        for number in range(repeat):
            for way in list(ways)[:: -1 if number % 2 else 1]:
                parts = uvloop.run(add_and_remove(cluster, Load(ways[way], app["api_key"]), BEFORE_S * scale))
                for part, figures in parts.items():
                    say(f"{number + 1}/{repeat} {way}, {part}: {figures}")
                    results.setdefault(way, {}).setdefault(part, []).append(figures)
    for way, runs in results.items():
        show(f"{AT_A_TIME} clients of an app of 0.2 s, {way}", COLUMNS, runs)
        for part in ("adding", "removing"):
            print(f"p99 while {part}, against before: {ratio(runs[part], runs['before'], 'p99_ms')}")
    return results


async def add_and_remove(cluster: Kept, load: Load, before_s: float) -> dict[str, dict[str, float]]:
    """One round."""

    def deploy(*arguments: str) -> Awaitable[float]:
        return asyncio.to_thread(cluster.deploy, *arguments)

    async with load:
        return {
            "before": await load.during(asyncio.sleep(before_s)),
            "adding": await load.during(deploy(*APP, *OTHER, "app=other")),
            "removing": await load.during(deploy("--action", "remove", "app=other")),
        }
