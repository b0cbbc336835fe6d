from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests import fake_engine
from tests.fake_engine import FakeEngine, Fault

BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "a b c"}], "n": 2}


async def ask(url: str, body: dict[str, Any] = BODY) -> dict[str, Any]:
    async with aiohttp.ClientSession() as session, session.post(f"{url}/chat/completions", json=body) as reply:
        assert reply.status == 200
        answer: dict[str, Any] = await reply.json()
        return answer


async def test_it_answers_as_an_engine_does() -> None:
    async with FakeEngine() as engine:
        answer = await ask(engine.url)
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["a b c"] * 2
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}


async def test_health_and_models() -> None:
    async with FakeEngine(model="tiny") as engine, aiohttp.ClientSession() as session:
        async with session.get(f"{engine.url}/models") as reply:
            assert [model["id"] for model in (await reply.json())["data"]] == ["tiny"]
        for healthy in (True, False):
            engine.healthy = healthy
            async with session.get(f"{engine.root}/health") as reply:
                assert (reply.status == 200) is healthy


async def test_faults_can_depend_on_the_request() -> None:
    async with FakeEngine(fail=lambda body: Fault.http(418) if body["n"] == 1 else None) as engine:
        await ask(engine.url)
        with pytest.raises(AssertionError):
            await ask(engine.url, BODY | {"n": 1})
    assert len(engine.requests) == 2


async def test_stopping_waits_for_nobody() -> None:
    engine = FakeEngine(fail=[Fault.hang()])
    await engine.start()
    async with aiohttp.ClientSession() as session:
        with pytest.raises(TimeoutError):
            await session.post(f"{engine.url}/chat/completions", json=BODY, timeout=aiohttp.ClientTimeout(total=0.1))
        started = time.monotonic()
        await engine.stop()
    assert time.monotonic() - started < 2


async def test_as_a_process() -> None:
    command = [sys.executable, str(Path(fake_engine.__file__)), "--port", "0", "--latency", "0.1", "--model", "m"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            started = time.monotonic()
            assert len((await ask(process.stdout.readline().strip()))["choices"]) == 2
            assert time.monotonic() - started > 0.1
        finally:
            process.kill()
