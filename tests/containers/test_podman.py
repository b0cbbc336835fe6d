"""Containers of the real podman."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from matrix.containers.pool import ContainerError, ContainerPool
from matrix.spec.services import ContainerEngine
from tests.checkout import ROOT
from tests.containers.images import left, make_image

pytestmark = pytest.mark.skipif(
    shutil.which("podman") is None or shutil.which("runc") is None, reason="needs podman and runc"
)

# What works also where cgroups are of version 1 and limits of root are low.
_CONF = """
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("podman")
    (folder / "containers.conf").write_text(_CONF)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONTAINERS_CONF", str(folder / "containers.conf"))
        files = make_image(folder / "files")
        subprocess.run(["tar", "-cf", str(folder / "image.tar"), "-C", str(files), "."], check=True)
        name = f"localhost/matrix-test-{os.getpid()}"
        made = subprocess.run(
            ["podman", "import", "--quiet", str(folder / "image.tar"), name],
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            pytest.skip(f"podman doesn't work here: {made.stderr}")
        yield name
        subprocess.run(["podman", "rmi", "--force", name], capture_output=True, check=True)


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="matrix-test-") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def engine(image: str) -> ContainerEngine:
    return ContainerEngine(
        kind="container", backend="podman", images={"base": image}, containers=2, memory_mb=128, processes=64
    )


def containers_of(place: Path) -> list[str]:
    label = f"label=matrix={place}/matrix-containers-{os.geteuid()}"
    told = subprocess.run(["podman", "ps", "-aq", "--filter", label], capture_output=True, text=True, check=True)
    return told.stdout.split()


async def test_commands_files_and_limits(image: str, place: Path) -> None:
    pool = ContainerPool(engine(image))
    await pool.start()
    try:
        one = await pool.acquire("base", 20)
        ran = await pool.execute(one, "echo $A; pwd; echo e >&2; exit 3", cwd="/etc", env={"A": "b"})
        assert (ran.exit_code, ran.output) == (3, b"b\n/etc\ne\n")
        await pool.write(one, "/a/b", b"\xff")
        # What takes too long is ended inside, too, and the files stay.
        late = await pool.execute(one, "sleep 876.5 & sleep 876.5", timeout_s=1)
        assert late.exit_code is None
        told = await pool.execute(one, "for p in /proc/[0-9]*; do cat $p/cmdline; echo; done")
        assert b"876.5" not in told.output
        assert await pool.read(one, "/a/b") == b"\xff"
        bomb = await pool.execute(one, "x=a; while :; do x=$x$x; done", timeout_s=20)
        assert bomb.exit_code not in {0, None}
        assert len(containers_of(place)) == 1
        await pool.release(one)
        assert containers_of(place) == []
        gone = await pool.acquire("base", 20)
        subprocess.run(["podman", "rm", "-f", "-t", "0", *containers_of(place)], capture_output=True, check=True)
        with pytest.raises(ContainerError, match="ended by itself"):
            await pool.execute(gone, "true")
        await pool.acquire("base", 20)
    finally:
        await pool.close()
    assert containers_of(place) == []
    assert left(place) == []


_DIES = """
import asyncio, os, sys
from matrix.containers.pool import ContainerPool
from matrix.spec.services import ContainerEngine
async def main():
    pool = ContainerPool(ContainerEngine(kind="container", backend="podman", images={"base": sys.argv[1]}))
    await pool.start()
    await pool.acquire("base", 20)
    os.kill(os.getpid(), 9)
asyncio.run(main())
"""


async def test_the_next_replica_removes_what_a_dead_one_left(image: str, place: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(place)}
    subprocess.run([sys.executable, "-c", _DIES, image], env=env, check=False, timeout=60)
    assert len(containers_of(place)) == 1
    pool = ContainerPool(engine(image))
    await pool.start()
    assert containers_of(place) == []
    await pool.close()
