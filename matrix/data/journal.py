"""The row journal: append-only part files in `rows/` of a run dir, and `rows.jsonl` made from them.

One writer appends to one part, `part-<writer>.jsonl`, one row per line. What makes a row safe:

- A row is one `write` to a file opened with O_APPEND. When the call has returned, the bytes are the kernel's: a
  kill -9 of the process takes nothing away. (A power failure can: that is what the fsync every few seconds is for.)
- A kill or a full disk in the midst of that call leaves half a line, at the very end, without its newline. The newline
  is a row's last byte, so that readers take a line without one as not there, even while it is being written; the
  writer that opens the part next cuts it off.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from matrix.data.rows import Response, Row, RowError, RowKey, Score
from matrix.errors import DataError

_LOG = logging.getLogger(__name__)

_BLOCK = 1 << 16

# How orjson writes the head of a `Row`. Keys are read from it without parsing the rest, which is 100 times longer.
_HEAD = re.compile(rb'\{"id":("(?:[^"\\]|\\.)*+"),"index":(\d+),"trial":(\d+),"status":"')

_TRIAL_BITS, _PART_BITS, _OFFSET_BITS = 24, 24, 48


class Journal:
    """Writer of one part; used by one thread.

    Args:
        folder: The `rows` folder of a run dir; made if it isn't there.
        writer: Name of the writer, one per process that writes at the same time.
        fsync_every_s: Rows of at most so many seconds can be lost when the power fails. 0: fsync after each row.

    Raises:
        DataError: Another process writes this part, or the folder can't be written.
    """

    def __init__(self, folder: Path, writer: str, *, fsync_every_s: float = 5.0) -> None:
        self.path = folder / f"part-{writer}.jsonl"
        self._fsync_every_s = fsync_every_s
        self._synced_at = time.monotonic()
        with ExitStack() as opened:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._lock = _lock(folder / f".part-{writer}.lock", self.path)
                opened.callback(os.close, self._lock)
                self._part = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
                opened.callback(os.close, self._part)
                self._size = _cut_torn_tail(self._part, self.path)
            except OSError as error:
                raise DataError(f"{self.path}: {error.strerror}") from error
            self._opened = opened.pop_all()
        self._closed = False

    def append(self, row: Row) -> None:
        """Write a row; it outlives the process as soon as this returns.

        Values of the request that JSON doesn't know are stored as text.

        Raises:
            DataError: The row can't be written (a full disk, say). The part ends with the row before it, as if this one
                had never been tried.
        """
        try:
            line = memoryview(orjson.dumps(row, default=str, option=orjson.OPT_APPEND_NEWLINE))
        except TypeError as error:
            raise DataError(f"row {row.id}, trial {row.trial} can't be written as JSON: {error}") from error
        try:
            written = 0
            while written < len(line):
                written += os.write(self._part, line[written:])
        except OSError as error:
            os.ftruncate(self._part, self._size)
            raise DataError(f"{self.path}: {error.strerror}; all rows before {row.id} are kept") from error
        self._size += len(line)
        if time.monotonic() - self._synced_at >= self._fsync_every_s:
            self.sync()

    def sync(self) -> None:
        """Have the rows so far survive a power failure too."""
        try:
            os.fsync(self._part)
        except OSError as error:
            raise DataError(f"{self.path}: {error.strerror}") from error
        self._synced_at = time.monotonic()

    def close(self) -> None:
        """Sync, and let others write the part. May be called twice."""
        if self._closed:
            return
        self._closed = True
        with self._opened:
            self.sync()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def done_keys(folder: Path) -> set[RowKey]:
    """Keys of all rows in all parts; empty if there is no such folder."""
    return {RowKey(_text(head[1]), int(head[3])) for part in _parts(folder) for _, head in _heads(part)}


def read_rows(folder: Path) -> Iterator[Row]:
    """Rows of all parts in order of (index, trial); where a key was written twice, the last one.

    Raises:
        DataError: A line is damaged, or was written by a version whose rows are different.
    """
    return map(decode_row, _sorted_lines(folder))


def write_sorted(folder: Path, target: Path) -> int:
    """Write the rows of all parts to one file, in order of (index, trial), each once; it appears when it is whole.

    Memory is about 60 bytes per row, whatever the size of the rows.

    Returns:
        How many rows that were.

    Raises:
        DataError: The file can't be written; a former one is left as it was.
    """
    half = target.with_name(f".{target.name}.half")
    count = 0
    try:
        with half.open("wb") as file:
            for line in _sorted_lines(folder):
                file.write(line)
                count += 1
            file.flush()
            os.fsync(file.fileno())
        half.replace(target)
    except OSError as error:
        half.unlink(missing_ok=True)
        raise DataError(f"{target}: {error.strerror}; the rows are kept in {folder}") from error
    return count


def decode_row(line: bytes) -> Row:
    """Read a line of a part or of `rows.jsonl`.

    Raises:
        DataError: It holds something else.
    """
    try:
        fields: dict[str, Any] = orjson.loads(line)
        response, error = fields.get("response"), fields.get("error")
        fields["response"] = Response(**response) if response else None
        fields["error"] = RowError(**error) if error else None
        fields["scores"] = {name: Score(**score) for name, score in fields.get("scores", {}).items()}
        return Row(**fields)
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"not a row of this version of matrix ({error}): {line[:80]!r}...") from error


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


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.jsonl"))


def _heads(part: Path) -> Iterator[tuple[int, re.Match[bytes]]]:
    """Offset and head of each whole row; what isn't one is passed over, so that its key counts as not done."""
    offset = 0
    try:
        with part.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    # The end, as far as it is written: what a writer adds now is the rest of this line, not a line.
                    return
                head = _HEAD.match(line)
                if head and line.endswith(b"}\n"):
                    yield offset, head
                else:
                    _LOG.warning("%s: what stands at byte %d is not a row", part, offset)
                offset += len(line)
    except OSError as error:
        raise DataError(f"{part}: {error.strerror}") from error


def _text(quoted: bytes) -> str:
    return str(orjson.loads(quoted)) if b"\\" in quoted else quoted[1:-1].decode()


def _sorted_lines(folder: Path) -> Iterator[bytes]:
    """Lines in order of (index, trial), the last written of each.

    A row is kept in memory as one number, (index, trial, part, offset) from the highest bits to the lowest: it sorts
    like that tuple and takes a third of its room.
    """
    parts = _parts(folder)
    rows = sorted(
        ((int(head[2]) << _TRIAL_BITS | int(head[3])) << _PART_BITS | number) << _OFFSET_BITS | offset
        for number, part in enumerate(parts)
        for offset, head in _heads(part)
    )
    place_bits = _PART_BITS + _OFFSET_BITS
    with ExitStack() as stack:
        files = [stack.enter_context(part.open("rb")) for part in parts]
        for position, row in enumerate(rows):
            if position + 1 < len(rows) and rows[position + 1] >> place_bits == row >> place_bits:
                continue
            file = files[row >> _OFFSET_BITS & (1 << _PART_BITS) - 1]
            file.seek(row & (1 << _OFFSET_BITS) - 1)
            yield file.readline()
