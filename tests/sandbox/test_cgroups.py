"""Cgroups: version 1 for real where this machine lets us, version 2 in a tree of files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from matrix.sandbox.cgroups import make_cgroup

V1 = "9:name=systemd:/\n8:pids:/box\n4:memory:/box\n0::/\n"
V2 = "0::/user.slice/mine\n"


def tree(root: Path, *files: str, **contents: str) -> Path:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(contents.get(Path(name).name.replace(".", "_"), ""))
    return root


def own(tmp_path: Path, text: str) -> Path:
    (tmp_path / "cgroup").write_text(text)
    return tmp_path / "cgroup"


def test_version_1_for_real() -> None:
    cgroup = make_cgroup(20)
    if cgroup is None:
        pytest.skip("this machine lets us make no cgroup")
    enter = "import sys; [open(place, 'w').write(str(__import__('os').getpid())) for place in sys.argv[1:]]\n"
    places = list(map(str, cgroup.entrances()))
    try:
        cgroup.limit(64 << 20)
        assert cgroup.kills() == 0
        hungry = subprocess.run([sys.executable, "-c", enter + "x = bytearray(200 << 20)", *places], check=False)
        assert hungry.returncode == -9
        assert cgroup.kills() == 1
        # Up and down again: with swap counted there are two limits, in an order.
        for size_mb in (256, 128, 256):
            cgroup.limit(size_mb << 20)
        fed = subprocess.run([sys.executable, "-c", enter + "x = bytearray(100 << 20)", *places], check=False)
        assert fed.returncode == 0
        forks = (
            enter
            + "import os\nn = 0\ntry:\n    while os.fork(): n += 1\n    __import__('time').sleep(1); os._exit(0)\nexcept OSError: print(n)"
        )
        counted = subprocess.run([sys.executable, "-c", forks, *places], check=False, capture_output=True, text=True)
        assert int(counted.stdout) == 19
        assert cgroup.used() >= 0
    finally:
        while any(place.read_text().split() for place in cgroup.entrances()):
            pass
        cgroup.remove()
    assert not any(place.exists() for place in cgroup.entrances())


def test_version_1_in_its_own_group_or_in_the_root(tmp_path: Path) -> None:
    root = tree(tmp_path / "fs", "memory/cgroup.procs", "pids/cgroup.procs")
    cgroup = make_cgroup(5, root, own(tmp_path, V1))
    assert cgroup is not None
    assert [place.parent.parent for place in cgroup.entrances()] == [root / "memory", root / "pids"]
    assert (cgroup.entrances()[1].parent / "pids.max").read_text() == "5"
    tree(root, "memory/box/cgroup.procs", "pids/box/cgroup.procs")
    nearer = make_cgroup(5, root, own(tmp_path, V1))
    assert nearer is not None
    assert [place.parent.parent for place in nearer.entrances()] == [root / "memory/box", root / "pids/box"]


def test_version_1_needs_both(tmp_path: Path) -> None:
    root = tree(tmp_path / "fs", "memory/cgroup.procs")
    assert make_cgroup(5, root, own(tmp_path, V1)) is None


def test_version_2_beside_its_own(tmp_path: Path) -> None:
    root = tree(
        tmp_path / "fs",
        "user.slice/cgroup.subtree_control", "user.slice/cgroup.procs",
        "user.slice/mine/cgroup.subtree_control", "user.slice/mine/cgroup.procs",
    )  # fmt: skip
    assert make_cgroup(5, root, own(tmp_path, V2)) is None, "no controllers are handed on"
    (root / "user.slice/cgroup.subtree_control").write_text("cpu memory pids\n")
    cgroup = make_cgroup(5, root, own(tmp_path, V2))
    assert cgroup is not None
    folder = cgroup.entrances()[0].parent
    assert folder.parent == root / "user.slice"
    cgroup.limit(1 << 20)
    assert (folder / "memory.max").read_text() == str(1 << 20)
    assert (folder / "pids.max").read_text() == "5"
    (folder / "memory.events").write_text("low 0\nhigh 0\nmax 3\noom 2\noom_kill 7\n")
    (folder / "memory.current").write_text("4096\n")
    assert (cgroup.kills(), cgroup.used()) == (7, 4096)


def test_what_a_killed_process_left_goes(tmp_path: Path) -> None:
    root = tree(tmp_path / "fs", "memory/cgroup.procs", "pids/cgroup.procs")
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = [root / kind / f"matrix-{ended.pid}-abcd" for kind in ("memory", "pids")]
    alive = [root / kind / f"matrix-{os.getpid()}-abcd" for kind in ("memory", "pids")]
    for folder in (*left, *alive):
        folder.mkdir()
    make_cgroup(5, root, own(tmp_path, V1))
    assert [folder.exists() for folder in (*left, *alive)] == [False, False, True, True]
