"""`/v1/execute` of a real sandbox, by HTTP and gRPC, as clients see it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest

from matrix.apps.process import free_port
from matrix.client.endpoints import Endpoints
from matrix.client.execute_code import batch_executions, execute_code
from matrix.client.http import ModelClient
from matrix.errors import AppError, RequestError
from tests.serving.sandbox_server import sandbox
from tests.serving.server_process import KEY


class Servers:
    """One sandbox by both ways."""

    def __init__(self, http: str, grpc: str) -> None:
        self.http, self.grpc = http, grpc

    def get_app_metadata(self, app_name: str) -> dict[str, object]:
        """As `matrix.Cli` has it."""

        async def updater(_: bool) -> list[str]:
            return [self.http]

        endpoints = {"updater": updater, "grpc": [self.grpc] if app_name == "code" else []}
        return {"endpoints": endpoints, "model_name": "sandbox", "api_key": KEY}


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    port = free_port("127.0.0.1")
    with sandbox(grpc_port=port, memory_mb=128, max_timeout_s=5) as url:
        yield Servers(url, f"grpc://127.0.0.1:{port}")


@pytest.fixture(params=["http", "grpc"])
async def client(servers: Servers, request: pytest.FixtureRequest) -> AsyncIterator[ModelClient]:
    url = getattr(servers, request.param)
    async with ModelClient(Endpoints([url]), api_key=KEY, timeout_s=30, max_attempts=1) as found:
        yield found


async def test_a_program_and_what_comes_of_it(client: ModelClient) -> None:
    code = "import sys\nprint(input(), *sys.argv[1:])\nopen('out.bin', 'wb').write(b'\\xff')\nsys.exit(3)"
    found = await client.execute({"code": code, "stdin": "né", "args": ["a", ""], "outputs": ["*.bin"], "timeout": 4})
    assert (found.text, found.finish_reason) == (["né a \n"], ["error"])
    executed = found.executed or {}
    assert (executed["status"], executed["exit_code"], executed["stdout"]) == ("error", 3, "né a \n")
    assert executed["files"] == {"out.bin": {"base64": "/w=="}}
    assert executed["wall_s"] > 0
    assert executed["cpu_s"] > 0
    assert executed["queue_s"] >= 0
    assert executed["memory_mb"] > 0


async def test_files_of_both_kinds_go_along(client: ModelClient) -> None:
    files = {"a.txt": "text", "b/c.bin": {"base64": "AAE="}}
    found = await client.execute({"code": "print(open('a.txt').read(), open('b/c.bin', 'rb').read())", "files": files})
    assert found.text == ["text b'\\x00\\x01'\n"]


async def test_a_test_gives_the_verdict(client: ModelClient) -> None:
    body = {"code": "def f(x):\n    return x + 1", "test": "def check(g):\n    assert g(1) == 2", "entry_point": "f"}
    right, wrong = await client.execute(body), await client.execute({**body, "code": "def f(x):\n    return x"})
    assert (right.executed or {})["passed"] is True
    assert (wrong.executed or {})["passed"] is False
    assert wrong.finish_reason == ["failed"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"code": "1", "timeout": 6}, "max_timeout_s=5"),
        ({"code": "1", "memory": 5000}, "max_memory_mb=4096"),
        ({"code": "1", "language": "rust"}, "rust"),
        ({"code": "1", "files": {"../a": "x"}}, "../a"),
        ({"code": 1}, "code: Input should be a valid string"),
        ({"code": "1", "timout": 1}, "timout: Extra inputs are not permitted"),
        ({}, "code: Field required"),
        ({"code": "1", "files": {"main.py": "x"}}, "'main.py' is what the code is written to"),
        ({"code": "1", "files": {"a": {"base64": "!!"}}}, "base64"),
        ({"code": "1", "test": " \n"}, "the test is empty"),
        ({"code": "1", "entry_point": "f"}, "belong to a test"),
    ],
)
async def test_what_cannot_be_run_is_refused(client: ModelClient, body: dict[str, object], said: str) -> None:
    with pytest.raises(RequestError) as raised:
        await client.execute(body)
    assert raised.value.kind == "http_400"
    assert said in str(raised.value)


async def test_it_serves_no_model(client: ModelClient) -> None:
    with pytest.raises(RequestError) as raised:
        await client.chat({"messages": []})
    assert raised.value.kind == "http_404"


async def test_its_pages(servers: Servers) -> None:
    root = servers.http.removesuffix("v1")
    async with aiohttp.ClientSession(root, headers={"Authorization": f"Bearer {KEY}"}) as session:
        async with session.get("/health") as answer:
            assert answer.status == 200
        async with session.get("/v1/models") as answer:
            assert [one["id"] for one in (await answer.json())["data"]] == ["sandbox"]
        async with session.get("/metrics") as answer:
            page = await answer.text()
        async with session.post("/v1/execute", json={"code": "1", "model": "other"}) as answer:
            assert answer.status == 404
        async with session.post("/v1/execute", json={"code": "1"}, headers={"Authorization": "no"}) as answer:
            assert answer.status == 401
    assert 'matrix_requests_total{status="200"}' in page
    assert "matrix_requests_waiting 0" in page


def test_from_python(servers: Servers) -> None:
    programs = ["print(1)", {"code": "1/0", "metadata": {"line": 2}}, {"code": "1", "language": "rust"}]
    for rows in (
        batch_executions(servers.http, programs, api_key=KEY),
        execute_code(servers, "code", programs),
        execute_code(servers, "code", programs, use_grpc=True),
    ):
        right, wrong, refused = rows
        assert (right["response"]["success"], right["response"]["stdout"]) == (True, "1\n")
        assert (wrong["response"]["success"], wrong["response"]["status"]) == (False, "error")
        assert wrong["response"]["exception"] == "ZeroDivisionError: division by zero"
        assert wrong["request"]["metadata"]["line"] == 2
        assert "rust" in refused["response"]["error"]
        assert refused["response"]["success"] is False
    with pytest.raises(AppError, match="takes no gRPC"):
        execute_code(servers, "other", programs, use_grpc=True)
    with pytest.raises(TypeError):
        batch_executions(servers.http, programs, timout=3)


async def test_a_full_queue_is_told_and_waited_for() -> None:
    with sandbox(workers=1, max_queue=0) as url:
        busy = {"code": "import time; time.sleep(1.5)"}
        headers = {"Authorization": f"Bearer {KEY}"}
        async with (
            ModelClient(Endpoints([url]), api_key=KEY, timeout_s=30, max_attempts=1) as client,
            aiohttp.ClientSession(headers=headers) as session,
        ):
            first = asyncio.create_task(client.execute(busy))
            await asyncio.sleep(0.5)
            async with session.post(f"{url}/execute", json={"code": "1"}) as answer:
                assert (answer.status, answer.headers["Retry-After"]) == (429, "1")
            # The client asks again until there is room.
            assert (await client.execute({"code": "print(2)"})).text == ["2\n"]
            await first
