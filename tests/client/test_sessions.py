"""The connections that an event loop's requests share end with it, whoever runs the loop, and leave no noise."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time

import pytest

from matrix.client import sessions
from matrix.client.query_llm import make_request
from matrix.client.running import run_to_end
from tests.command import environment
from tests.fake_engine import FakeEngine

HEAD = """
import asyncio, gc, sys, threading
from matrix.client.query_llm import batch_requests, make_request
url, hello = sys.argv[1], {"messages": [{"role": "user", "content": "hello"}]}
async def main():
    rows = await asyncio.gather(*(make_request(url, "fake", hello) for _ in range(3)))
    assert all("text" in row["response"] for row in rows), rows
"""
# How event loops come and go.
ENDS = {
    "asyncio.run": "asyncio.run(main())\nasyncio.run(main())",
    "uvloop": "import uvloop\nuvloop.run(main())",
    "closed without shutdown_asyncgens": (
        "for _ in range(2):\n    loop = asyncio.new_event_loop()\n    loop.run_until_complete(main())\n    loop.close()"
    ),
    "never closed": "asyncio.new_event_loop().run_until_complete(main())",
    "a batch": "batch_requests(url, 'fake', [hello] * 3)",
    "a batch in a running loop": "async def outer(): batch_requests(url, 'fake', [hello] * 3)\nasyncio.run(outer())",
    "a thread of its own": "t = threading.Thread(target=asyncio.run, args=(main(),))\nt.start()\nt.join()",
}
BATCH = "batch_requests(url, 'fake', [hello] * 20, batch_size=2)\n"


def script(engine: FakeEngine, code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error::ResourceWarning", "-c", HEAD + code, engine.url],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_nothing_is_said_of_sessions_that_were_left_open(end: str) -> None:
    with FakeEngine.in_thread() as engine:
        process = script(engine, ENDS[end] + "\ngc.collect()")
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    # A loop that nobody closes is the script's own affair.
    assert "aiohttp" not in said
    assert "nclosed client" not in said
    assert "nclosed connector" not in said


def test_a_loop_that_ended_is_forgotten() -> None:
    with FakeEngine.in_thread() as engine:

        async def ask() -> None:
            await make_request(engine.url, "fake", {"messages": []})
            assert asyncio.get_running_loop() in sessions._owners

        asyncio.run(ask())
        assert not sessions._owners
        loop = asyncio.new_event_loop()
        loop.run_until_complete(ask())
        loop.close()
        asyncio.run(ask())
    assert not sessions._owners


async def test_servers_that_were_asked_long_ago_are_forgotten() -> None:
    common = await sessions.shared()
    first = common.endpoints("first", ["http://a/v1"])
    assert common.endpoints("first", ["http://a/v1/"]) is first
    common.endpoints("first", ["http://b/v1"])
    assert first.urls == ["http://b/v1"]
    for number in range(100):
        common.endpoints(number, ["http://a/v1"])
    assert common.endpoints("first", ["http://b/v1"]) is not first
    assert len(common._servers) <= 64


@pytest.mark.parametrize("code", [BATCH, f"async def outer(): {BATCH}asyncio.run(outer())"], ids=["plain", "in a loop"])
def test_ctrl_c_ends_a_batch_at_once(code: str) -> None:
    with FakeEngine.in_thread(latency_s=1) as engine:
        process = script(engine, code)
        while not engine.requests:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=5)
    assert "KeyboardInterrupt" in said
    assert len(engine.requests) == 2


def test_what_the_coroutine_raises_or_returns_comes_through() -> None:
    async def inner(value: int) -> int:
        if value < 0:
            raise ValueError(value)
        return value

    async def outer() -> int:
        with pytest.raises(ValueError, match="-1"):
            run_to_end(lambda: inner(-1))
        return run_to_end(lambda: inner(2))

    assert run_to_end(lambda: inner(1)) == 1
    assert asyncio.run(outer()) == 2
