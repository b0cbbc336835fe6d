"""Containers as an app on real Ray: deployed, looked after, leased at the front door, and gone with their clients."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from matrix.client.containers import Container, ContainerClient
from matrix.errors import RequestError
from tests.integration.kept import Cluster

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap"),
]

HOLDER = """
import asyncio, sys
from matrix.client.containers import ContainerClient
async def main():
    async with ContainerClient(sys.argv[1], api_key=sys.argv[2]) as client:
        for _ in range(2):
            await client.acquire("here", lease_s=2)
        print("held", flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    box = ["apps.box.engine=container", "+apps.box.engine.images={here: host}", "apps.box.engine.containers=2"]
    with Cluster.until_the_end(tmp_path_factory.mktemp("m")) as kept:
        kept.deploy(*box, "apps.box.engine.cpus=0.1", "app=box", "cluster.cpus=2")
        yield kept


@pytest.fixture(scope="module")
def door(cluster: Cluster) -> str:
    return json.loads(cluster.command("status", "--json").stdout)["front_door"] + "/box/v1"


@pytest.fixture(scope="module")
def key(cluster: Cluster) -> str:
    return cluster.command("status", "--key").stdout.strip()


def test_it_is_well(cluster: Cluster) -> None:
    for more in ([], ["image=here"]):
        said = cluster.command("check_health", "app=box", *more).stdout
        assert said.count("ok  http") == 2, "the replica and the front door"
        assert "echo hello in here: hello (exit code 0)" in said
        assert "app box is healthy" in said
    assert "use_grpc=false" in cluster.command("check_health", "app=box", "use_grpc=true", code=1).stderr
    said = cluster.command("check_health", "app=box", "image=there", code=1).stdout
    assert "there" in said
    assert "app box is NOT healthy" in said


def test_what_is_written_stays_in_its_container(door: str, key: str) -> None:
    async def main() -> tuple[str, str, bytes]:
        async with (
            ContainerClient(door, api_key=key) as client,
            await client.acquire("here") as one,
            await client.acquire("here") as other,
        ):
            await one.write_file("/work/secret", "né")
            mine = await one.execute("cat secret; touch /usr/more", cwd="/work")
            theirs = await other.execute("cat /work/secret")
            return mine.output, theirs.output, await one.read_file("/work/secret")

    mine, theirs, content = asyncio.run(main())
    assert mine == "nétouch: cannot touch '/usr/more': Read-only file system\n"
    assert "No such file" in theirs
    assert content == "né".encode()


def test_the_leases_of_a_killed_client_come_back_and_another_ones_stay(door: str, key: str) -> None:
    async def waits(container: Container) -> str:
        return (await container.execute("sleep 4; echo still here")).output

    async def main() -> str:
        async with ContainerClient(door, api_key=key) as client:
            with pytest.raises(RequestError, match="no container within"):
                await client.acquire("here", timeout_s=0.5)
            os.kill(holder.pid, signal.SIGKILL)
            container = await client.acquire("here", timeout_s=30)
            again = await client.acquire("here", timeout_s=30)
            await again.release()
            return await waits(container)

    with subprocess.Popen([sys.executable, "-c", HOLDER, door, key], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert asyncio.run(main()) == "still here\n"


def test_nobody_without_the_key_gets_one(door: str) -> None:
    async def main() -> None:
        async with ContainerClient(door, api_key="wrong") as client:
            await client.acquire("here", timeout_s=10)

    with pytest.raises(RequestError) as refused:
        asyncio.run(main())
    assert refused.value.kind == "http_401"
