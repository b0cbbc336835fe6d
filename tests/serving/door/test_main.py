from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from tests.fake_engine import FakeEngine
from tests.serving.door.doors import AUTH, CHAT, KEY, route


@asynccontextmanager
async def door(*options: str, **env: str) -> AsyncIterator[Process]:
    command = (sys.executable, "-m", "matrix.serving.door", "--port", "0", *options)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MATRIX_")}
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE, env=clean | env)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def urls(process: Process) -> list[str]:
    assert process.stdout is not None
    async with asyncio.timeout(20):
        return (await process.stdout.readline()).decode().split()


async def test_nothing_listens_without_a_key() -> None:
    async with door() as process:
        out, err = await process.communicate()
        assert (process.returncode, out) == (2, b"")
        assert b"MATRIX_API_KEY" in err


async def test_what_is_under_way_may_end() -> None:
    async with (
        FakeEngine(latency_s=1, api_key=KEY) as engine,
        door("--grpc-port", "0", MATRIX_API_KEY=KEY, MATRIX_CONTROL_KEY="c") as process,
        aiohttp.ClientSession(headers=AUTH) as session,
    ):
        http, grpc = await urls(process)
        assert grpc.startswith("grpc://127.0.0.1:")
        told = {"apps": [route("a", engine.url)]}
        async with session.put(f"{http}/control/routes", json=told, headers={"Authorization": "Bearer c"}) as reply:
            assert reply.status == 200

        async def ask() -> int:
            async with session.post(f"{http}/v1/completions", json={"model": "a", "prompt": "x", **CHAT}) as reply:
                await reply.read()
                return reply.status

        asked = asyncio.create_task(ask())
        async with asyncio.timeout(10):
            while not engine.requests:
                await asyncio.sleep(0.01)
        process.terminate()
        assert await asked == 200
        async with asyncio.timeout(10):
            assert await process.wait() == 0


async def test_without_a_control_key_it_is_the_key() -> None:
    async with door(MATRIX_API_KEY=KEY) as process, aiohttp.ClientSession(headers=AUTH) as session:
        (http,) = await urls(process)
        async with session.put(f"{http}/control/routes", json={}) as reply:
            assert await reply.json() == {"version": 0, "demand": {}, "waiting": {}, "idle_s": {}}
        process.terminate()
        async with asyncio.timeout(10):
            assert await process.wait() == 0
