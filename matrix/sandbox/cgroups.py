"""Limits of memory and processes for all that a worker runs together, where this process may make cgroups."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path
from typing import Protocol

_ROOT = Path("/sys/fs/cgroup")
_SELF = Path("/proc/self/cgroup")
_UNIFIED = (Path(), Path("unified"))


class Cgroup(Protocol):
    """A cgroup of a worker."""

    def entrances(self) -> list[Path]:
        """Files that a process writes its number to, to be in it."""

    def limit(self, memory_bytes: int) -> None:
        """How much memory all its processes may have together, from now on."""

    def kills(self) -> int:
        """Processes that the kernel has ended in it for want of memory."""

    def used(self) -> int:
        """Bytes of memory that its processes take now."""

    def remove(self) -> None:
        """Take it away; its processes have ended."""


class _Version1:
    """Hierarchies of their own for memory and pids: https://docs.kernel.org/admin-guide/cgroup-v1/memory.html."""

    def __init__(self, memory: Path, pids: Path, processes: int) -> None:
        self._memory, self._pids = memory, pids
        memory.mkdir()
        pids.mkdir()
        (pids / "pids.max").write_text(str(processes))

    def entrances(self) -> list[Path]:
        return [self._memory / "cgroup.procs", self._pids / "cgroup.procs"]

    def limit(self, memory_bytes: int) -> None:
        names = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
        with_swap = self._memory / names[1]
        if not with_swap.exists():
            names.pop()
        # The limit with swap may never be the smaller of the two.
        elif memory_bytes > int(with_swap.read_text()):
            names.reverse()
        for name in names:
            (self._memory / name).write_text(str(memory_bytes))

    def kills(self) -> int:
        return _number_after("oom_kill", self._memory / "memory.oom_control")

    def used(self) -> int:
        return int((self._memory / "memory.usage_in_bytes").read_text())

    def remove(self) -> None:
        for folder in (self._memory, self._pids):
            if folder.exists():
                folder.rmdir()


class _Version2:
    """One folder for all: https://docs.kernel.org/admin-guide/cgroup-v2.html."""

    def __init__(self, folder: Path, processes: int) -> None:
        self._folder = folder
        folder.mkdir()
        (folder / "pids.max").write_text(str(processes))
        swap = folder / "memory.swap.max"
        if swap.exists():
            swap.write_text("0")

    def entrances(self) -> list[Path]:
        return [self._folder / "cgroup.procs"]

    def limit(self, memory_bytes: int) -> None:
        (self._folder / "memory.max").write_text(str(memory_bytes))

    def kills(self) -> int:
        return _number_after("oom_kill", self._folder / "memory.events")

    def used(self) -> int:
        return int((self._folder / "memory.current").read_text())

    def remove(self) -> None:
        self._folder.rmdir()


def make_cgroup(processes: int, root: Path = _ROOT, own: Path = _SELF) -> Cgroup | None:
    """A new cgroup, as near to this process's own as may be.

    Args:
        processes: That it may have at a time.
        root: Where cgroups are mounted.
        own: This process's, as /proc tells of them.

    Returns:
        None where this process may not make one with both limits.
    """
    name = f"matrix-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    paths = _own(own)
    memory, pids = (_parent(root / kind, paths.get(kind, "/")) for kind in ("memory", "pids"))
    if memory is not None and pids is not None:
        for folder in (memory, pids):
            _sweep(folder)
        return _Version1(memory / name, pids / name, processes)
    for place in _UNIFIED:
        # Not in our own: one with processes hands no limits on. But beside it.
        beside = root / place / paths.get("", "/").strip("/")
        for folder in (beside, beside.parent):
            handed_on = folder / "cgroup.subtree_control"
            if not handed_on.is_file() or not os.access(folder, os.W_OK) or not _may_enter(folder):
                continue
            if {"memory", "pids"} <= set(handed_on.read_text().split()):
                _sweep(folder)
                return _Version2(folder / name, processes)
    return None


def _sweep(folder: Path) -> None:
    """Take away what a process left here that was killed."""
    for left in folder.glob("matrix-*-*"):
        owner = left.name.split("-")[1]
        if not Path("/proc", owner).exists():
            with contextlib.suppress(OSError):
                left.rmdir()


def _own(file: Path) -> dict[str, str]:
    """From a controller to the path of this process's cgroup; that of version 2 under ""."""
    paths: dict[str, str] = {}
    for line in file.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        paths |= dict.fromkeys(controllers.split(","), path)
    return paths


def _parent(hierarchy: Path, path: str) -> Path | None:
    """Where a cgroup may be made: in our own, or in the root if that is all that a container shows."""
    for folder in (hierarchy / path.strip("/"), hierarchy):
        if (folder / "cgroup.procs").is_file() and os.access(folder, os.W_OK) and _may_enter(folder):
            return folder
    return None


def _may_enter(folder: Path) -> bool:
    return os.access(folder / "cgroup.procs", os.W_OK)


def _number_after(word: str, file: Path) -> int:
    found = [line.split() for line in file.read_text().splitlines()]
    return next((int(parts[1]) for parts in found if parts[0] == word), 0)
