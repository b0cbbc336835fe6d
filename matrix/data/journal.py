"""The row journal's writer: append-only part files in `rows/` of a run dir. `parts` reads them, `sorting` merges them.

One writer appends to one part, `part-<writer>.jsonl`, one row per line. What makes a row safe:

- A row is one `write` to a file opened with O_APPEND. When the call has returned, the bytes are the kernel's: a
  kill -9 of the process takes nothing away. (A power failure can: that is what the fsync every few seconds is for. It
  takes up to a second on a busy disk, so a thread of its own does it and no request waits for it.)
- A kill or a full disk in the midst of that call leaves half a line, at the very end, without its newline. The newline
  is a row's last byte, so that readers take a line without one as not there, even while it is being written; the
  writer that opens the part next cuts it off.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import threading
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import orjson

from matrix.data.rows import Row
from matrix.data.sorting import half_of
from matrix.errors import DataError

_LOG = logging.getLogger(__name__)

_BLOCK = 1 << 16
_OPTIONS = orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY


class Journal:
    """Writer of one part; used by one thread.

    What a kill left half written is removed when it opens: the end of its part, and files next to the folder.

    Args:
        folder: The `rows` folder of a run dir; made if it isn't there.
        writer: Name of the writer, one per process that writes at the same time.
        fsync_every_s: Rows of about so many seconds can be lost when the power fails. None: no fsync by time.
        fsync_every_rows: `append` itself waits for an fsync after so many rows. None: no fsync by rows.

    Raises:
        DataError: Another process writes this part, or the folder can't be written.
    """

    def __init__(
        self, folder: Path, writer: str, *, fsync_every_s: float | None = 5.0, fsync_every_rows: int | None = None
    ) -> None:
        self.path = folder / f"part-{writer}.jsonl"
        with ExitStack() as opened:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._lock = _lock(folder / f".part-{writer}.lock", self.path)
                opened.callback(os.close, self._lock)
                self._part = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
                opened.callback(os.close, self._part)
                self._size = _cut_torn_tail(self._part, self.path)
                for half in folder.parent.glob(half_of(Path("*")).name):
                    half.unlink(missing_ok=True)
            except OSError as error:
                raise DataError(f"{self.path}: {error.strerror}") from error
            self._opened = opened.pop_all()
        self._every_rows = fsync_every_rows
        self._unsynced = 0
        self._failure: OSError | None = None
        self._closing = threading.Event()
        self._syncer = threading.Thread(target=self._sync_every, args=(fsync_every_s,), name="journal", daemon=True)
        self._syncer.start()

    @property
    def size(self) -> int:
        """Bytes of the part."""
        return self._size

    def append(self, row: Row) -> None:
        """Write a row; it outlives the process as soon as this returns.

        Values of the request that JSON doesn't know are stored as text.

        Raises:
            DataError: The row can't be written (a full disk, say). The part ends with the row before it, as if this one
                had never been tried. Or rows before it couldn't be synced.
        """
        try:
            line = orjson.dumps(row, str, _OPTIONS)
        except TypeError as error:
            raise DataError(f"row {row.id}, trial {row.trial} can't be written as JSON: {error}") from error
        if self._failure is not None:
            raise self._not_synced(self._failure)
        size = len(line)
        try:
            written = os.write(self._part, line)
            while written < size:
                written += os.write(self._part, line[written:])
        except OSError as error:
            os.ftruncate(self._part, self._size)
            kept = f"all rows before {row.id} (index {row.index}, trial {row.trial}) are kept"
            raise DataError(f"{self.path}: {error.strerror}; {kept}") from error
        self._size += size
        self._unsynced += 1
        if self._unsynced == self._every_rows:
            self.sync()

    def sync(self) -> None:
        """Have the rows so far survive a power failure too.

        Raises:
            DataError: The disk refuses.
        """
        self._fsync()
        if self._failure is not None:
            raise self._not_synced(self._failure)

    def close(self) -> None:
        """Sync, and let others write the part. May be called twice."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._syncer.join()
        with self._opened:
            self.sync()

    def _sync_every(self, seconds: float | None) -> None:
        while not self._closing.wait(seconds):
            if self._unsynced:
                self._fsync()

    def _fsync(self) -> None:
        # Before the call: a row that is appended meanwhile may be left out.
        self._unsynced = 0
        try:
            os.fsync(self._part)
        except OSError as error:
            self._failure = error

    def _not_synced(self, error: OSError) -> DataError:
        return DataError(f"{self.path}: {error.strerror}; rows of the last seconds may be lost if the machine stops")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _lock(lock: Path, part: Path) -> int:
    """Take the lock of a part; it goes with the process, however that ends. The file is never removed.

    A file of its own, since it also says who holds it. flock, since a POSIX lock would go as soon as anything
    in this process closed the file.
    """
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(descriptor, 200).decode(errors="replace") or "another process"
        os.close(descriptor)
        way_out = "wait for it or stop it, or give another run dir"
        raise DataError(f"run dir {part.parent.parent} is in use: {holder} writes {part.name} ({way_out})") from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()}".encode(), 0)
    return descriptor


def _cut_torn_tail(part: int, path: Path) -> int:
    """Cut the part after its last whole row; returns its size. More than one line may go after a power failure."""
    size = sound = os.fstat(part).st_size
    while sound:
        start, line = _last_line(part, sound)
        if line.endswith(b"\n") and _is_json(line):
            break
        sound = start
    if sound < size:
        os.ftruncate(part, sound)
        _LOG.warning("%s: cut off %d bytes of a row that was not written to its end", path, size - sound)
    return sound


def _last_line(part: int, size: int) -> tuple[int, bytes]:
    """Offset and bytes of the last line of the first `size` bytes."""
    line, start = b"", size
    while start:
        step = min(start, _BLOCK)
        start -= step
        line = os.pread(part, step, start) + line
        newline = line.rfind(b"\n", 0, len(line) - 1)
        if newline >= 0:
            return start + newline + 1, line[newline + 1 :]
    return 0, line


def _is_json(line: bytes) -> bool:
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return True
