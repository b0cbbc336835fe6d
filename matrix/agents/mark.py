"""Whose code is running now: a mark in a file that outlives the process, so that a death has a culprit.

Thousands of rows are in flight in a peer that dies; most of them only wait. The row whose code the event loop is
running writes its key into mapped memory before and takes it away after, for each time that the loop resumes it. Such
memory is the kernel's, so that it can be read after a kill -9. A kill from outside mostly finds nobody.

A row that keeps the loop busy for too long gets an exception. Code in C doesn't notice (a lock, a regular expression
that never ends), and some of it lets no other Python code run; then a thread of faulthandler's, which is C, too, writes
down where that is, and ends the process.
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import mmap
import os
import struct
import threading
import time
import types
from collections.abc import Coroutine, Generator
from pathlib import Path
from typing import Any, NamedTuple

from matrix.data.rows import RowKey

_MARK = struct.Struct("<qqq")
_NOBODY = _MARK.pack(-1, 0, 0)
_LOOK_S = 1.0
_GRACE_S = 30.0
"""A machine that swaps may keep a process from everything for a while."""
_PREFIX = "mark-"
_LOG = logging.getLogger(__name__)


class RoleHangsError(Exception):
    """A role keeps its process busy without ever waiting for anything."""


class Mark:
    """The mark of one peer, and a watch over how long it stands.

    Args:
        folder: The folder `steps` of the run dir; made if it isn't there.
        writer: Name of the peer.
    """

    def __init__(self, folder: Path, writer: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(_path(folder, writer), os.O_RDWR | os.O_CREAT, 0o644)
        os.ftruncate(self._file, _MARK.size)
        self._hang = _hang(folder, writer).open("w")
        self._memory = mmap.mmap(self._file, _MARK.size)
        self._memory[:] = _NOBODY
        self._resumed = 0
        self._over = threading.Event()
        self._watcher: threading.Thread | None = None

    def watch(self, limit_s: float) -> None:
        """Interrupt what runs in this thread longer than that without a pause: RoleHangsError is raised in it.

        If that doesn't help, the process is ended after the same time again.
        """
        arguments = (threading.get_ident(), limit_s)
        self._watcher = threading.Thread(target=self._watch, args=arguments, daemon=True, name="mark")
        self._end_after(limit_s)
        self._watcher.start()

    @types.coroutine
    def running(self, key: RowKey, work: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """Run a coroutine; while it has the loop its row is marked."""
        memory, mine = self._memory, _MARK.pack(key.index, key.trial, 1)
        size = _MARK.size
        value: Any = None
        error: BaseException | None = None
        while True:
            self._resumed += 1
            memory[:size] = mine
            try:
                waited_for = work.send(value) if error is None else work.throw(error)
            except StopIteration as over:
                return over.value
            finally:
                memory[:size] = _NOBODY
            try:
                value, error = (yield waited_for), None
            except BaseException as raised:  # noqa: BLE001 - the loop's cancellation is the coroutine's business
                error = raised

    def close(self) -> None:
        """End the watch."""
        self._over.set()
        if self._watcher is not None:
            self._watcher.join()
            faulthandler.cancel_dump_traceback_later()
        self._hang.close()
        self._memory.close()
        os.close(self._file)

    def _watch(self, thread: int, limit_s: float) -> None:
        seen, since, told = -1, 0.0, False
        while not self._over.wait(min(_LOOK_S, limit_s / 4)):
            now = time.monotonic()
            if self._over.is_set() or self._memory[: _MARK.size] == _NOBODY or self._resumed != seen:
                seen, since, told = self._resumed, now, False
                self._end_after(limit_s)
            elif now - since > limit_s and not told:
                told = True
                index, trial, _ = _MARK.unpack(self._memory[: _MARK.size])
                _LOG.warning("Row %d, trial %d keeps its process busy for %g s without a pause", index, trial, limit_s)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(RoleHangsError))

    def _end_after(self, limit_s: float) -> None:
        faulthandler.dump_traceback_later(2 * limit_s + _GRACE_S, exit=True, file=self._hang)


class Culprit(NamedTuple):
    """Whose code was running when a peer died.

    Attributes:
        key: The row.
        hung: Where it kept the process busy, if that was ended for it; empty: it died by itself.
    """

    key: RowKey
    hung: str


def culprit(folder: Path, writer: str) -> Culprit | None:
    """Who it was; None: nobody. Told once."""
    path = _path(folder, writer)
    if not path.is_file() or path.stat().st_size != _MARK.size:
        return None
    index, trial, _ = _MARK.unpack(path.read_bytes())
    path.write_bytes(_NOBODY)
    if index < 0:
        return None
    hang = _hang(folder, writer)
    return Culprit(RowKey(index, trial), hang.read_text() if hang.is_file() else "")


def marked_writers(folder: Path) -> list[str]:
    """Peers that have a mark there."""
    return [path.name.removeprefix(_PREFIX) for path in folder.glob(f"{_PREFIX}*")]


def _path(folder: Path, writer: str) -> Path:
    return folder / f"{_PREFIX}{writer}"


def _hang(folder: Path, writer: str) -> Path:
    return folder / f"hang-{writer}"
