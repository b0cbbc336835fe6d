"""Run a command and tell what it and all that it started used: CPU over time, memory, and how busy the others were."""

from __future__ import annotations

import bisect
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from processes import busy_s

_PR_SET_CHILD_SUBREAPER = 36
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 2**20
_EVERY_S = 0.2
_PSS_EVERY = 5
"""Looks at the shared memory are dearer, so only each fifth time."""
_END_S = 10.0


@dataclass
class Used:
    """What a command used.

    Attributes:
        stdout: What it printed.
        wall_s: Seconds from start to exit.
        rss_mb: Highest sum of its processes' resident sets; what they share counts for each of them.
        pss_mb: The same with shared memory counted once, looked at once a second.
        times: Of each look, in seconds since the epoch.
        cpu: CPU seconds until then, of all its processes, those that ended included.
        busy: CPU seconds until then, of the whole machine.
    """

    stdout: str = ""
    wall_s: float = 0.0
    rss_mb: float = 0.0
    pss_mb: float = 0.0
    times: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)

    def cpu_s(self, began: float, ended: float) -> float:
        """CPU seconds between two moments."""
        return self._at(self.cpu, ended) - self._at(self.cpu, began)

    def others(self, began: float, ended: float) -> float:
        """Cores that the rest of the machine was busy with between two moments."""
        all_s = self._at(self.busy, ended) - self._at(self.busy, began)
        return max(0.0, (all_s - self.cpu_s(began, ended)) / max(ended - began, 1e-9))

    def _at(self, values: Sequence[float], when: float) -> float:
        after = min(max(bisect.bisect(self.times, when), 1), len(self.times) - 1)
        t0, t1 = self.times[after - 1], self.times[after]
        share = min(max((when - t0) / (t1 - t0), 0.0), 1.0)
        return values[after - 1] + share * (values[after] - values[after - 1])


def run(
    command: Sequence[str],
    cwd: Path,
    environment: Mapping[str, str] | None = None,
    *,
    beside: Iterable[int] = (),
    timeout_s: float = 1800,
    meanwhile: Callable[[int], object] | None = None,
) -> Used:
    """Run a command to its end, and end what it leaves behind.

    Args:
        command: Program and arguments.
        cwd: Where it runs; its output goes to files there.
        environment: Of the command; None: ours.
        beside: Processes of ours that are no part of it, such as the server that it talks to.
        timeout_s: Seconds after which it is ended.
        meanwhile: Called in a thread with its process id; it has to return once the command is over.

    Raises:
        SystemExit: It failed, or ran too long; with the end of what it said.
    """
    # What daemonises becomes a child of ours instead of init's, so that nothing is overlooked or left over.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    used, over = Used(), threading.Event()
    began = time.monotonic()
    with (cwd / "stdout").open("wb") as out, (cwd / "stderr").open("wb") as err:
        process = subprocess.Popen(command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
    kept = {*beside}
    watch = threading.Thread(target=_watch, args=(used, over, kept))
    watch.start()
    other = threading.Thread(target=meanwhile, args=(process.pid,)) if meanwhile else None
    if other:
        other.start()
    try:
        code = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        code = -1
    except BaseException:
        process.kill()
        raise
    finally:
        used.wall_s = time.monotonic() - began
        over.set()
        watch.join()
        _end_left(kept)
    if other:
        other.join()
    used.stdout = (cwd / "stdout").read_text()
    if code:
        said = used.stdout[-2000:] + (cwd / "stderr").read_text()[-4000:]
        raise SystemExit(f"{' '.join(command)}\nexit status {code}\n{said}")
    return used


def tree(root: int, without: Iterable[int] = ()) -> list[int]:
    """The descendants of a process, without those of some."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208 - read very often
        if entry.isdigit() and (fields := _stat(int(entry))):
            parents.setdefault(int(fields[1]), []).append(int(entry))
    found, left, out = [], [root], {*without}
    while left:
        children = [pid for pid in parents.get(left.pop(), []) if pid not in out]
        found += children
        left += children
    return found


def cpu_of(pids: Iterable[int]) -> float:
    """CPU seconds of some processes, and of their children that have ended."""
    return sum(sum(map(int, fields[11:15])) for pid in pids if (fields := _stat(pid))) * _TICK_S


def _watch(used: Used, over: threading.Event, kept: set[int]) -> None:
    me, looks, last = os.getpid(), 0, 0.0
    before = os.times()
    while True:
        cpu, rss, pss = 0.0, 0.0, 0.0
        for pid in tree(me, kept):
            fields = _stat(pid)
            if fields:
                cpu += sum(map(int, fields[11:15])) * _TICK_S
                rss += int(fields[21]) * _PAGE_MB
                if looks % _PSS_EVERY == 0:
                    pss += _pss_mb(pid)
        # Those that have ended and were ours: the command itself at its end, and daemons.
        now = os.times()
        cpu += now.children_user + now.children_system - before.children_user - before.children_system
        # One whose parent hasn't heard of its end yet is missing for a moment.
        last = max(last, cpu)
        used.times.append(time.time())
        used.cpu.append(last)
        used.busy.append(busy_s())
        used.rss_mb, used.pss_mb = max(used.rss_mb, rss), max(used.pss_mb, pss)
        looks += 1
        if over.is_set():
            return
        over.wait(_EVERY_S)


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the name (proc(5)): state, parent, ...; None if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - read very often
            return file.read().rpartition(b")")[2].decode().split()
    except OSError:
        return None


def _pss_mb(pid: int) -> float:
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:  # noqa: PTH123 - read very often
            return next((int(line.split()[1]) / 1024 for line in file if line.startswith(b"Pss:")), 0.0)
    except OSError:
        return 0.0


def _end_left(kept: set[int]) -> None:
    """End what the command left running; all of it descends from us."""
    end = time.monotonic() + _END_S
    told: set[int] = set()
    while left := tree(os.getpid(), kept):
        for pid in left:
            with suppress(ProcessLookupError):
                if pid not in told:
                    os.kill(pid, signal.SIGTERM)
                    told.add(pid)
                elif time.monotonic() > end:
                    os.kill(pid, signal.SIGKILL)
        for pid in left:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        time.sleep(0.05)
