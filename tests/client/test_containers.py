"""Containers over HTTP: a client and real servers of containers."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from matrix.client.containers import ContainerClient
from matrix.errors import ConfigError, RequestError
from tests.checkout import ROOT
from tests.containers.images import left, make_image, processes_of, serving
from tests.serving.server_process import KEY

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image(tmp_path_factory.mktemp("image"))


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="matrix-test-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


async def test_a_client_gives_back_its_own(image: Path, place: Path) -> None:
    with serving(place, images={"base": str(image)}, containers=3) as server:
        async with ContainerClient(server.url, api_key=KEY) as stays:
            kept = await stays.acquire("base")
            async with ContainerClient(server.url, api_key=KEY) as goes:
                lost = await goes.acquire("base")
                async with await goes.acquire("base") as box:
                    ran = await box.execute("echo $A; pwd; exit 3", cwd="/etc", env={"A": "b"})
                    assert (ran.exit_code, ran.output, ran.timed_out) == (3, "b\n/etc\n", False)
                    assert (await box.execute(["sleep", "9"], timeout_s=0.2)).timed_out
                    await box.write_file("/a/text", "ä")
                    await box.write_file("/a/bytes", b"\xff")
                    assert await box.read_file("/a/text") == "ä".encode()
                    assert await box.read_file("/a/bytes") == b"\xff"
                with pytest.raises(RequestError, match="no file") as missing:
                    await kept.read_file("/none")
                assert missing.value.kind == "http_400"
            with pytest.raises(RequestError) as ended:
                await lost.execute("true")
            assert ended.value.kind == "lease_ended"
            assert (await kept.execute("echo here")).output == "here\n"
            assert stays.held == [kept]
    assert left(place) == []


async def test_who_waits_gets_the_next_one(image: Path, place: Path) -> None:
    with serving(place, images={"base": str(image)}, containers=1, lease_s=0.8) as server:
        async with ContainerClient(server.url, api_key=KEY) as client:
            first = await client.acquire("base")
            with pytest.raises(RequestError, match="taken") as late:
                await client.acquire("base", timeout_s=1.5)
            assert late.value.kind == "timeout"
            # Longer than the lease: signs of life come from the client in the background.
            assert (await first.execute("echo here")).output == "here\n"
            waiting = asyncio.create_task(client.acquire("base"))
            await asyncio.sleep(0.2)
            await first.release()
            assert (await (await waiting).execute("echo next")).output == "next\n"
            with pytest.raises(RequestError, match=r"engine\.images") as wrong:
                await client.acquire("other")
            assert wrong.value.kind == "http_400"


_DIES = """
import asyncio, os, sys
from matrix.client.containers import ContainerClient
async def main():
    async with ContainerClient(sys.argv[1], api_key=sys.argv[2]) as client:
        box = await client.acquire("base")
        task = asyncio.create_task(box.execute("sleep 765.5"))
        await asyncio.sleep(1)
        os.kill(os.getpid(), 9)
asyncio.run(main())
"""


async def test_a_dead_clients_container_comes_back(image: Path, place: Path) -> None:
    with serving(place, images={"base": str(image)}, containers=1, lease_s=1) as server:
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", _DIES, server.url, KEY], env=env, check=False, timeout=30)
        async with ContainerClient(server.url, api_key=KEY) as client:
            began = time.monotonic()
            await client.acquire("base", timeout_s=20)
            assert time.monotonic() - began < 15
        assert processes_of("765.5") == []


async def test_another_replica_passes_calls_on(image: Path, place: Path) -> None:
    with serving(place, images={"base": str(image)}) as one, serving(place, images={"base": str(image)}) as other:
        async with ContainerClient(one.url, api_key=KEY) as client:
            box = await client.acquire("base")
            told = await ask(other.url, "execute", {"lease": box.id, "command": "echo there", "call": "1"})
            assert told[1]["output"] == "there\n"
            assert (await ask(other.url, "execute", {"lease": box.id, "command": "true", "call": "1"}))[0] == 409
            # An address that isn't signed is never asked.
            forged = "127.0.0.1:9/" + box.id.partition("/")[2]
            assert (await ask(other.url, "renew", {"lease": forged}))[0] == 410
            one.process.kill()
            one.process.wait()
            assert (await ask(other.url, "renew", {"lease": box.id}))[0] == 410
    # What the killed one has left, the next one removes.
    with serving(place, images={"base": str(image)}):
        assert len(left(place)) == 1


async def test_no_client_decides_what_the_config_does(image: Path, place: Path) -> None:
    refused: dict[str, dict[str, Any]] = {
        "engine.mounts": {"mounts": {"/": "/host"}},
        "engine.args": {"run_args": ["--bind", "/"]},
        "engine.backend": {"executable": "sh"},
        "engine.environment": {"forward_env": ["HOME"]},
        "image": {"image": "a\0b"},
    }
    with serving(place, images={"base": str(image)}) as server:
        for told, body in refused.items():
            status, answer = await ask(server.url, "acquire", {"image": "base", **body})
            assert status == 400
            assert told in answer["error"]["message"]


async def ask(url: str, what: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    headers = {"Authorization": f"Bearer {KEY}"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(f"{url}/containers/{what}", json=body) as reply,
    ):
        return reply.status, await reply.json()


def test_containers_are_asked_for_by_http() -> None:
    with pytest.raises(ConfigError, match="by HTTP"):
        ContainerClient("grpc://127.0.0.1:1", api_key=None)
