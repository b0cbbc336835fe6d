"""A small image made of this machine's own programs, and a server that hands out containers of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.serving.server_process import Server, command, environment

PROGRAMS = ("bash", "cat", "mkdir", "sleep", "id", "env", "ls", "touch", "rm", "chown", "stat")
GROUPS = Path("/sys/fs/cgroup/memory")


def make_image(folder: Path) -> Path:
    """Files of a system that can run a shell."""
    paths = [Path(shutil.which(name) or "") for name in PROGRAMS]
    told = subprocess.run(["ldd", *map(str, paths)], capture_output=True, text=True, check=True).stdout
    libraries = {Path(found) for found in re.findall(r"(/\S+\.so\S*)", told) if ":" not in found}
    for source in {*paths, *libraries}:
        target = folder / "usr" / str(source).removeprefix("/usr/").lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source.resolve(), target)
    for name in ("bin", "lib", "lib64"):
        (folder / "usr" / name).mkdir(exist_ok=True)
        (folder / name).symlink_to(f"usr/{name}")
    (folder / "usr/bin/sh").symlink_to("bash")
    for name in ("etc", "root", "tmp"):
        (folder / name).mkdir()
    (folder / "etc/motd").write_text("hello\n")
    return folder


@contextmanager
def serving(place: Path, **engine: Any) -> Iterator[Server]:
    """A server of containers with files of its own below `place`, which is empty again at its end."""
    spec = {"engine": {"kind": "container", **engine}, "model": {"name": "container"}}
    env = environment(spec) | {"TMPDIR": str(place)}
    process = subprocess.Popen(command(), env=env, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://"), f"no URL: exit code {process.wait(10)}"
        yield Server(url, process)
    finally:
        process.terminate()
        process.wait(20)


def left(place: Path) -> list[str]:
    """What replicas have left there."""
    root = place / f"matrix-containers-{os.geteuid()}"
    return [path.name for path in root.iterdir()] if root.exists() else []


def processes_of(word: str) -> list[int]:
    """Processes with a word in their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if word.encode() in line:
            found.append(int(folder.name))
    return found
