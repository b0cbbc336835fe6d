"""MCP servers as sources of tools: real ones, over standard input and HTTP, that also die, hang and fail."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from matrix.agents.functions import CallError
from matrix.agents.mcp import McpServer, check_server
from matrix.agents.mcp_session import _MARK
from matrix.cluster.reaper import MARK
from matrix.errors import ConfigError, ToolError
from matrix.spec.agents import McpTools

SERVER = Path(__file__).parent / "mcp_server.py"


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    path = tmp_path / "notes"
    path.touch()
    return path


def stdio(notes: Path, how: str = "stdio", **fields: Any) -> McpServer:
    command = [sys.executable, str(SERVER), how]
    return McpServer("shop", McpTools(kind="mcp", command=command, env={"NOTES": str(notes)}, **fields))


def left(notes: Path) -> list[psutil.Process]:
    """Servers of a test that are still there."""
    return [one for one in psutil.Process().children(recursive=True) if one.environ().get("NOTES") == str(notes)]


class Http:
    """A server on loopback, which a test starts and kills."""

    def __init__(self, notes: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.notes = notes
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, how: str = "http") -> None:
        command = [sys.executable, str(SERVER), how, str(self.port)]
        self.process = subprocess.Popen(command, env={**os.environ, "NOTES": str(self.notes)})

    async def ready(self) -> None:
        # Importing a server takes half a minute where the machine is busy.
        for _ in range(2400):
            with socket.socket() as asked:
                if asked.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            await asyncio.sleep(0.05)
        pytest.fail("the server doesn't listen")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def tools(self, **fields: Any) -> McpServer:
        return McpServer("shop", McpTools(kind="mcp", url=f"http://127.0.0.1:{self.port}/mcp", **fields))


@pytest.fixture
def http(notes: Path) -> Iterator[Http]:
    server = Http(notes)
    yield server
    server.kill()


class Shop:
    """A server that several tests share, and what it noted."""

    def __init__(self, server: McpServer, notes: Path) -> None:
        self.server = server
        self.notes = notes

    async def call(self, tool: str, **arguments: Any) -> str:
        return await self.server.tools[tool].call(arguments)


@pytest_asyncio.fixture(params=["stdio", "http", "stateless"], scope="module", loop_scope="module")
async def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shop]:
    notes = tmp_path_factory.mktemp("shop") / "notes"
    notes.touch()
    http = Http(notes)
    try:
        if request.param == "stdio":
            server = stdio(notes)
        else:
            http.start(request.param)
            await http.ready()
            server = http.tools()
        await server.open()
        yield Shop(server, notes)
        await server.close()
    finally:
        http.kill()


shared = pytest.mark.asyncio(loop_scope="module")


@shared
async def test_a_servers_tools_become_openai_tools(shop: Shop) -> None:
    assert list(shop.server.tools) == [
        "add", "text_echo", "fails", "crashes", "pictures", "environment", "pid", "dies_once", "dies",
    ]  # fmt: skip
    spec = shop.server.tools["add"].spec
    assert spec["type"] == "function"
    assert spec["function"]["name"] == "add"
    assert spec["function"]["description"] == "Add two numbers."
    assert spec["function"]["parameters"]["required"] == ["a"]
    assert spec["function"]["parameters"]["properties"]["b"]["type"] == "integer"


@shared
async def test_results_become_text(shop: Shop) -> None:
    assert await shop.call("add", a=2, b=3) == "5"
    assert await shop.call("text_echo", text="ä\nb") == "ä\nb"
    assert (await shop.call("pictures")).splitlines() == [
        "one",
        "[image image/png, 300 bytes, not shown]",
        "[resource list: shop://list]",
        "inside",
        "two",
    ]


@shared
@pytest.mark.parametrize(
    ("tool", "arguments", "said"),
    [
        ("fails", {}, "the shop is closed"),
        ("crashes", {}, "Error executing tool crashes"),
        ("add", {"a": "two"}, "arguments of add: a: 'two' is not of type 'integer'"),
        ("add", {}, "arguments of add: 'a' is a required property"),
    ],
)
async def test_errors_name_what_is_wrong(shop: Shop, tool: str, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(CallError) as failed:
        await shop.call(tool, **arguments)
    assert said in str(failed.value)


@shared
async def test_rows_share_a_session(shop: Shop) -> None:
    begun = time.monotonic()
    # More than an HTTP client has connections by default: waiting for one must not end the session.
    calls = [shop.call("text_echo", text=f"row {number}", after=0.5) for number in range(150)]
    assert await asyncio.gather(*calls) == [f"row {number}" for number in range(150)]
    assert time.monotonic() - begun < 60
    assert shop.notes.read_text().count("started") == 1
    assert shop.notes.read_text().count("echo row") == 150


@shared
async def test_a_call_that_is_cancelled_leaves_the_session(shop: Shop) -> None:
    hangs = asyncio.create_task(shop.call("text_echo", text="x", after=100))
    await asyncio.sleep(0.2)
    hangs.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hangs
    assert await shop.call("add", a=1) == "2"
    assert shop.notes.read_text().count("started") == 1


async def test_a_deadline_ends_a_call_and_nothing_else(notes: Path, http: Http) -> None:
    http.start()
    await http.ready()
    for server in (stdio(notes, timeout_s=2), http.tools(timeout_s=2)):
        await server.open()
        hangs = asyncio.create_task(server.tools["text_echo"].call({"text": "x", "after": 100}))
        await asyncio.sleep(0.2)
        assert await server.tools["add"].call({"a": 1}) == "2"
        with pytest.raises(CallError, match=r"^text\.echo gave no answer within 2 s$"):
            await hangs
        assert await server.tools["add"].call({"a": 1}) == "2"
        await server.close()
    assert notes.read_text().count("started") == 2


async def test_a_killed_command_is_started_again(notes: Path) -> None:
    server = stdio(notes)
    await server.open()
    calls = [asyncio.create_task(server.tools["text_echo"].call({"text": str(n), "after": 1})) for n in range(20)]
    first = int(await server.tools["pid"].call({}))
    os.kill(first, signal.SIGKILL)
    assert await asyncio.gather(*calls) == [str(n) for n in range(20)]
    second = int(await server.tools["pid"].call({}))
    assert second != first
    os.kill(second, signal.SIGKILL)
    await asyncio.sleep(0.3)
    assert await server.tools["add"].call({"a": 1}) == "2"
    assert notes.read_text().count("started") == 3
    await server.close()
    assert not left(notes)


async def test_a_call_that_kills_its_server_is_tried_twice(notes: Path) -> None:
    server = stdio(notes)
    await server.open()
    assert await server.tools["dies_once"].call({}) == "alive"
    with pytest.raises(CallError, match=r"^dies: Connection closed$"):
        await server.tools["dies"].call({})
    assert notes.read_text().count("died again") == 2
    assert await server.tools["add"].call({"a": 1}) == "2"
    await server.close()


@pytest.mark.parametrize("how", ["http", "stateless"])
async def test_a_server_at_an_address_may_be_away_for_a_while(http: Http, how: str) -> None:
    http.start(how)
    await http.ready()
    server = http.tools(timeout_s=150)
    await server.open()
    calls = [asyncio.create_task(server.tools["text_echo"].call({"text": str(n), "after": 1})) for n in range(20)]
    await asyncio.sleep(0.5)
    http.kill()
    await asyncio.sleep(1)
    calls.append(asyncio.create_task(server.tools["text_echo"].call({"text": "20"})))
    await asyncio.sleep(0.5)
    http.start(how)
    assert await asyncio.gather(*calls) == [str(n) for n in range(21)]
    await server.close()


async def test_a_server_that_forgot_its_sessions_gets_a_new_one(http: Http, notes: Path) -> None:
    http.start("http")
    await http.ready()
    server = http.tools()
    await server.open()
    http.kill()
    http.start("http")
    await http.ready()
    assert await server.tools["add"].call({"a": 1}) == "2"
    assert notes.read_text().count("started") == 2
    await server.close()


async def test_an_address_without_a_server_is_said_at_once(http: Http) -> None:
    server = http.tools()
    with pytest.raises(
        ToolError, match=rf"^agents\.tools\.shop: the server at http://127\.0\.0\.1:{http.port}/mcp doesn't serve: "
    ):
        await server.open()
    await server.close()


async def test_a_server_that_stays_away_is_an_error_for_the_model(http: Http) -> None:
    http.start()
    await http.ready()
    server = http.tools(timeout_s=2)
    await server.open()
    http.kill()
    with pytest.raises(CallError, match="add gave no answer within 2 s"):
        await server.tools["add"].call({"a": 1})
    await server.close()


async def test_a_command_that_fails_is_shown_with_its_last_lines(notes: Path) -> None:
    broken = stdio(notes, "broken")
    with pytest.raises(ToolError, match=r"(?s)doesn't serve: .*its last lines:\nTraceback: no shop here$"):
        await broken.open()
    await broken.close()
    missing = McpServer("shop", McpTools(kind="mcp", command=["no-such-command"]))
    with pytest.raises(ToolError, match=r"the command no-such-command doesn't serve: .*No such file"):
        await missing.open()
    await missing.close()


async def test_only_some_tools(notes: Path) -> None:
    server = stdio(notes, only=["add", "text.echo"])
    await server.open()
    assert list(server.tools) == ["add", "text_echo"]
    await server.close()
    wrong = stdio(notes, only=["ad", "pid"])
    with pytest.raises(
        ConfigError, match=r"agents\.tools\.shop\.only=ad: the server has no such tool \(did you mean add\?\)"
    ):
        await wrong.open()
    await wrong.close()


async def test_a_command_gets_the_environment_that_it_is_given(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_KEY", "secret")
    monkeypatch.setenv("OTHER_KEY", "another")
    monkeypatch.setenv(MARK, "cluster-7")
    command = [sys.executable, str(SERVER), "stdio"]
    env = {"NOTES": str(notes), "KEY": "$SHOP_KEY", "PLAIN": "a $b"}
    server = McpServer("shop", McpTools(kind="mcp", command=command, env=env))
    await server.open()
    asked = ["KEY", "PLAIN", "OTHER_KEY", "SHOP_KEY", MARK]
    assert [await server.tools["environment"].call({"name": name}) for name in asked] == [
        "secret",
        "a $b",
        "not set",
        "not set",
        "cluster-7",
    ]
    await server.close()


def test_the_mark_is_the_reapers() -> None:
    assert _MARK == MARK


async def test_headers_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    monkeypatch.setenv("SHOP_AUTH", "Bearer secret")
    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    spec = McpTools(kind="mcp", url=f"http://127.0.0.1:{port}/mcp", headers_env={"Authorization": "SHOP_AUTH"})
    server = McpServer("shop", spec)
    with pytest.raises(ToolError) as failed:
        await server.open()
    assert "secret" not in str(failed.value)
    await server.close()
    listening.close()
    assert any("authorization: Bearer secret" in one or "Authorization: Bearer secret" in one for one in seen)


@pytest.mark.parametrize("moment", [0.0, 0.05, 0.3])
async def test_closing_while_it_starts_leaves_nothing(notes: Path, moment: float) -> None:
    server = stdio(notes)
    opening = asyncio.create_task(server.open())
    await asyncio.sleep(moment)
    await server.close()
    with pytest.raises(ToolError, match="the session has ended"):
        await opening
    assert not left(notes)


def test_what_can_be_said_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHOP_KEY", raising=False)

    def said(**fields: Any) -> list[str]:
        return [str(one) for one in check_server("shop", McpTools(kind="mcp", **fields))]

    assert said(command=["x"], env={"KEY": "$SHOP_KEY", "A": "b"}) == [
        "agents.tools.shop.env.KEY=$SHOP_KEY: this environment variable is not set (export SHOP_KEY=...)"
    ]
    assert said(url="http://x/mcp", headers_env={"Authorization": "SHOP_KEY"}) == [
        "agents.tools.shop.headers_env.Authorization=SHOP_KEY: this environment variable is not set (export SHOP_KEY=...)"
    ]
    assert said(url="shop:8000") == ["agents.tools.shop.url=shop:8000: is no http address (http://HOST:PORT/mcp)"]
    assert [one.partition(":")[0] for one in said(url="http://x/mcp", env={"A": "b"})] == ["agents.tools.shop.env"]
    assert said(command=["x"], headers_env={"A": "PATH"}) == [
        "agents.tools.shop.headers_env: a command gets no headers (agents.tools.shop.env)"
    ]
