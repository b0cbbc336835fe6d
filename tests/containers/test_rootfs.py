"""Containers over an image's files, on the real bubblewrap."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from matrix.containers.pool import ContainerError, ContainerPool
from matrix.errors import AppError
from matrix.spec.services import ContainerEngine
from tests.as_user import USER, needs_root, run_as_user
from tests.checkout import ROOT
from tests.containers.images import left, make_image, processes_of

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image(tmp_path_factory.mktemp("image"))


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    # pytest's own folders let nobody else in, and a container's root may be somebody else.
    with tempfile.TemporaryDirectory(prefix="matrix-test-") as folder:
        Path(folder).chmod(0o755)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


@asynccontextmanager
async def pool(image: Path, **given: Any) -> AsyncIterator[ContainerPool]:
    engine = ContainerEngine(kind="container", images={"base": str(image)}, **given)
    made = ContainerPool(engine)
    await made.start()
    try:
        yield made
    finally:
        await made.close()


async def output(made: ContainerPool, token: str, command: str | list[str], **given: Any) -> str:
    return (await made.execute(token, command, **given)).output.decode()


async def test_what_is_written_stays_in_the_container(image: Path, place: Path) -> None:
    async with pool(image) as made:
        one, other = await made.acquire("base", 5), await made.acquire("base", 5)
        assert await output(made, one, "echo changed > /etc/motd; touch /new; cat /etc/motd") == "changed\n"
        assert await output(made, one, ["cat", "/etc/motd"]) == "changed\n"
        assert await output(made, other, "cat /etc/motd; ls /new 2>&1; true") != "changed\n"
        assert (image / "etc/motd").read_text() == "hello\n"
        assert not (image / "new").exists()
        await made.write(one, "a/b c.bin", b"\xff\0x")
        assert await made.read(one, "/a/b c.bin") == b"\xff\0x"
        with pytest.raises(ContainerError, match="no file"):
            await made.read(one, "/none")
        with pytest.raises(ContainerError, match="/etc is a folder"):
            await made.read(one, "/etc")
    assert left(place) == []


async def test_what_comes_of_a_command(image: Path, place: Path) -> None:
    async with pool(image, output_kb=4) as made:
        token = await made.acquire("base", 5)
        assert (await made.execute(token, "exit 3")).exit_code == 3
        assert (await made.execute(token, "kill -9 $$")).exit_code == 137
        apart = await made.execute(token, "echo out; echo err >&2", apart=True)
        assert (apart.output, apart.stderr) == (b"out\n", b"err\n")
        assert await output(made, token, "echo $A; pwd", env={"A": "1 2"}, cwd="/etc") == "1 2\n/etc\n"
        long = await made.execute(token, "for i in {1..9999}; do echo $i; done; echo end")
        assert long.output.startswith(b"1\n2\n")
        assert long.output.endswith(b"9999\nend\n")
        assert long.cut > 40_000
        late = await made.execute(token, "sleep 543.25 & sleep 543.25", timeout_s=0.3)
        assert late.exit_code is None
        for lacks in (await made.execute(token, ["nonexistent"]), await made.execute(token, "ls", cwd="/nowhere")):
            assert (lacks.exit_code, lacks.output.count(b"No such file")) == (127, 1)
        assert processes_of("543.25") == []


async def test_it_can_do_no_harm(image: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_HOST", "abc")
    before = Path("/proc/sys/kernel/domainname").read_text()
    async with pool(image, processes=32, memory_mb=64, disk_mb=8) as made:
        token = await made.acquire("base", 5)
        assert "SECRET" not in await output(made, token, ["env"])
        told = await output(made, token, "echo harmed > /proc/sys/kernel/domainname; echo x > /dev/tcp/127.0.0.1/22")
        assert "denied" in told or "Read-only" in told
        assert Path("/proc/sys/kernel/domainname").read_text() == before
        assert "refused" in told or "unreachable" in told
        assert "NoNewPrivs:\t1\n" in await output(made, token, ["cat", "/proc/self/status"])
        if os.geteuid() == 0:
            upper = next(place.glob("*/*/*/upper"))
            await made.execute(token, ["touch", "/mine"])
            assert (upper / "mine").stat().st_uid != 0
        bomb = await made.execute(token, "x=a; while :; do x=$x$x; done", timeout_s=20)
        assert bomb.exit_code != 0
        forks = await made.execute(token, "f() { f | f & }; f; sleep 1", timeout_s=5)
        assert forks.wall_s < 10
        full = await made.execute(token, "while :; do cat /usr/bin/bash; done > /a", timeout_s=20)
        assert full.exit_code not in {0, None}
        assert await output(made, token, "rm /a; echo well") == "well\n"


async def test_leases_end(image: Path, place: Path) -> None:
    async with pool(image, containers=1, lease_s=60) as made:
        token = await made.acquire("base", 5, lease_s=0.4)
        with pytest.raises(ContainerError) as busy:
            await made.acquire("base", 0.1)
        assert busy.value.reason == "busy"
        # A command is a sign of life for as long as it runs.
        assert await output(made, token, "sleep 1; echo alive") == "alive\n"
        waiting = asyncio.create_task(made.acquire("base", 10))
        second = await waiting
        with pytest.raises(ContainerError) as ended:
            await made.execute(token, "true")
        assert ended.value.reason == "ended"
        running = asyncio.create_task(made.execute(second, "sleep 60"))
        await asyncio.sleep(0.3)
        await made.release(second)
        with pytest.raises(ContainerError, match="given back"):
            await running
        assert made.taken == 0
    assert left(place) == []


async def test_a_call_is_run_once(image: Path, place: Path) -> None:
    async with pool(image) as made:
        token = await made.acquire("base", 5)
        await made.execute(token, "echo x >> /once", call="1")
        with pytest.raises(ContainerError) as again:
            await made.execute(token, "echo x >> /once", call="1")
        assert again.value.reason == "begun"
        assert await output(made, token, "cat /once") == "x\n"


async def test_images(image: Path, place: Path) -> None:
    archive = place / "image.tar.gz"
    subprocess.run(["tar", "-czf", str(archive), "-C", str(image), "."], check=True)
    async with pool(archive) as made:
        token = await made.acquire("base", 20)
        assert await output(made, token, "cat /etc/motd; echo b > /etc/motd; stat -c %u /etc/motd") == "hello\n0\n"
        with pytest.raises(ContainerError, match=r"engine.images \(did you mean base"):
            await made.acquire("bas", 1)
    with pytest.raises(AppError, match=r"engine\.images\.base=.*none: there is no such folder or archive"):
        async with pool(place / "none"):
            pass
    gone = place / "gone"
    gone.mkdir()
    async with pool(gone, containers=1) as made:
        gone.rmdir()
        for _ in range(2):
            with pytest.raises(ContainerError, match="no such folder or archive"):
                await made.acquire("base", 1)
    archive.unlink()
    assert left(place) == []


@needs_root
def test_as_a_user(image: Path, place: Path) -> None:
    archive = place / "image.tar"
    subprocess.run(["tar", "-cf", str(archive), "-C", str(image), "."], check=True)
    folder, own = place / "image", place / "own"
    shutil.copytree(image, folder, symlinks=True)
    own.mkdir()
    subprocess.run(["chown", "-R", f"{USER}:{USER}", str(folder), str(own)], check=True)
    arguments = "tests.containers.commands_as_user", str(folder), str(archive)
    found = json.loads(run_as_user(*arguments, folders=(place,), tmp=own))
    for name in ("folder", "archive"):
        told = found[name]
        assert told["who"][1].splitlines()[0] == "0", "it is root in its container"
        assert told["writes"] == told["again"] == [0, "changed\n"]
        assert told["capabilities"][1] == "0000000000000000\n"
    assert found["here"]["who"][1].startswith("0\n")
    for told in found.values():
        assert "refused" in told["network"][1] or "unreachable" in told["network"][1]
        assert told["memory"][0] not in {0, None}
    assert (folder / "etc/motd").read_text() == "hello\n"
    assert not list(own.glob("*/*"))


_DIES = """
import asyncio, os, sys
from matrix.containers.pool import ContainerPool
from matrix.spec.services import ContainerEngine
async def main():
    pool = ContainerPool(ContainerEngine(kind="container", images={"base": sys.argv[1]}))
    await pool.start()
    token = await pool.acquire("base", 5)
    task = asyncio.create_task(pool.execute(token, "touch /x; sleep 654.5"))
    await asyncio.sleep(1)
    os.kill(os.getpid(), 9)
asyncio.run(main())
"""


async def test_the_next_replica_removes_what_a_dead_one_left(image: Path, place: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(place)}
    subprocess.run([sys.executable, "-c", _DIES, str(image)], env=env, check=False, timeout=30)
    for _ in range(50):
        if not processes_of("654.5"):
            break
        await asyncio.sleep(0.1)
    assert processes_of("654.5") == []
    assert len(left(place)) == 1
    async with pool(image) as alive:
        async with pool(image):
            # One that lives keeps its own.
            token = await alive.acquire("base", 5)
        assert await output(alive, token, "echo here") == "here\n"
        assert len(left(place)) == 1
    assert left(place) == []
