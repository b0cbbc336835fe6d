"""Run a command so that nothing of it outlives its owner: `python -m matrix.apps.guard [--remove FILE] COMMAND...`.

An engine is a tree of processes, some in sessions of their own, and Ray ends a replica with SIGKILL when it has to.
The guard sits between the two. It ends the whole tree when its standard input is closed (the owner is gone, whatever
the reason), when it gets SIGTERM, or when the command itself ends. Orphans of the tree come back to the guard, which
is their subreaper (PR_SET_CHILD_SUBREAPER, prctl(2)), so none is missed. A file with secrets goes with the tree.

It is two processes. A worker of Ray that goes kills its children (`RAY_kill_child_processes_on_worker_exit`), the guard
among them, and the engine's own children would be left; so what guards is the child of a process that only waits.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_GRACE_S = 3.0
"""Seconds between asking the tree to end and ending it."""


def main(command: list[str], remove: Path | None = None) -> int:
    """Run the command until it ends or the owner is gone; return its exit code as a shell would give it.

    Args:
        command: The command.
        remove: File that is removed when the tree is ended.
    """
    inner = os.fork()
    return _wait_for(inner) if inner else _guard(command, remove)


def _wait_for(inner: int) -> int:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: os.kill(inner, number))
    return os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1])


def _guard(command: list[str], remove: Path | None) -> int:
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),  # noqa: PLW1509 - one thread
    )
    while child.poll() is None:
        ready, _, _ = select.select([0, wake_read], [], [])
        if wake_read in ready and set(os.read(wake_read, 4096)) - {signal.SIGCHLD}:
            break
        if 0 in ready and not os.read(0, 4096):
            break
    if remove is not None:
        # First of all: who ended the owner may end the guard, too, if the tree takes its time.
        remove.unlink(missing_ok=True)
    _end_tree(child)
    code = child.wait()
    return 128 - code if code < 0 else code


def _end_tree(child: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _GRACE_S
    _signal_all(signal.SIGTERM)
    while child.poll() is None or _descendants():
        if time.monotonic() > deadline:
            _signal_all(signal.SIGKILL)
        if child.returncode is not None:
            _reap()
        time.sleep(0.05)


def _signal_all(number: int) -> None:
    for pid in _descendants():
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _descendants() -> list[int]:
    """All living processes below this one; the subreaper keeps orphans among them."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            parents[int(entry.name)] = int(parent)
    found: list[int] = []
    front = {os.getpid()}
    while front:
        front = {pid for pid, parent in parents.items() if parent in front}
        found += front
    return found


if __name__ == "__main__":
    if sys.argv[1] == "--remove":
        sys.exit(main(sys.argv[3:], Path(sys.argv[2])))
    sys.exit(main(sys.argv[1:]))
