"""The rows in one file: jsonl, json, csv or parquet, also packed. Only the part that is being read is in memory."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO, cast

from matrix.data.naming import ending
from matrix.data.sources import LocalFile, RowFile
from matrix.errors import DataError

_BLOCK = 1 << 20
_MARK = b"\xef\xbb\xbf"
"""The byte order mark that some programs put before UTF-8."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """What stands in the place of a row that can't be read."""

    message: str


Numbered = Iterator[tuple[int, Any]]
"""Rows as they stand in a file, each with the number of its line or item."""


@dataclass(frozen=True)
class FileRows:
    """The rows of one file."""

    file: RowFile

    def rows(self) -> Numbered:
        """Every row from the first one, `Unreadable` where it is none.

        Raises:
            DataError: The file can't be read any further.
        """
        kind = _kind(self.file)
        with _reading(self.file), self.file.open() as stream:
            yield from _READERS[kind](stream, self.file)

    def place(self, number: int) -> str:
        """Where a row is, for messages: `gsm8k.jsonl:17`, `part.parquet row 17`."""
        return f"{self.file.name}{_PLACES[_kind(self.file)]}{number}"


def scan(file: LocalFile, limit: int | None) -> tuple[str, int]:
    """Read a file once, as fast as its rows can be counted.

    Returns:
        SHA-256 of its bytes, and how many rows it has; `limit` if there are more.
    """
    kind = _kind(file)
    with _reading(file), file.open() as stream:
        hashed = _Hashed(stream)
        if kind == ".parquet":
            with file.open() as footer:
                count = int(_parquet_file(footer, file).metadata.num_rows)
        elif kind == ".jsonl":
            lines = _unpacked(hashed, file)
            count = sum(1 for _ in islice((line for line in lines if not line.isspace()), limit))
        else:
            count = sum(1 for _ in islice(_READERS[kind](hashed, file), limit))
        while rest := stream.read(_BLOCK):
            hashed.sha256.update(rest)
    return hashed.sha256.hexdigest(), count if limit is None else min(count, limit)


class _Hashed(io.RawIOBase):
    """Bytes that are hashed as they are read."""

    def __init__(self, stream: BinaryIO) -> None:
        self.sha256 = hashlib.sha256()
        self._stream = cast("io.RawIOBase", stream)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = self._stream.readinto(buffer) or 0
        self.sha256.update(memoryview(buffer)[:size])
        return size


@contextmanager
def _reading(file: RowFile) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except UnicodeDecodeError as error:
        raise DataError(f"{file.name}: is not UTF-8: {error}") from error
    # A disk, gzip, Arrow, or an HTTP client behind fsspec.
    except Exception as error:
        why = error.__cause__ or error
        raise DataError(f"{file.name}: cannot be read: {type(why).__name__}: {why}") from error


def _kind(file: RowFile) -> str:
    return "." + ending(file.name).split(".")[1]


def _unpacked(stream: BinaryIO | io.RawIOBase, file: RowFile) -> io.BufferedReader[Any]:
    """The bytes of a text file, without compression and byte order mark."""
    packed: io.BufferedReader[Any] = io.BufferedReader(cast("io.RawIOBase", stream), _BLOCK)
    if file.name.lower().endswith(".gz"):
        unpacked: io.BufferedReader[Any] = io.BufferedReader(
            cast("io.RawIOBase", gzip.GzipFile(fileobj=packed)), _BLOCK
        )
    elif file.name.lower().endswith(".zst"):
        unpacked = io.BufferedReader(_import_pyarrow(file).CompressedInputStream(packed, "zstd"), _BLOCK)
    else:
        unpacked = packed
    if unpacked.peek(len(_MARK)).startswith(_MARK):
        unpacked.read(len(_MARK))
    return unpacked


def _jsonl(stream: BinaryIO | io.RawIOBase, file: RowFile) -> Numbered:
    import orjson

    for number, line in enumerate(_unpacked(stream, file), start=1):
        if line.isspace():
            continue
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            row = Unreadable(f"not JSON: {error.msg} (column {error.colno})")
        yield number, row


def _json(stream: BinaryIO | io.RawIOBase, file: RowFile) -> Numbered:
    import orjson

    try:
        rows = orjson.loads(_unpacked(stream, file).read())
    except orjson.JSONDecodeError as error:
        hint = "one object per line is .jsonl" if error.lineno > 1 else "a .json file holds one list of objects"
        raise DataError(f"{file.name}:{error.lineno}: not JSON: {error.msg} ({hint})") from error
    if not isinstance(rows, list):
        raise DataError(f"{file.name}: holds a {type(rows).__name__}, not a list of objects")
    yield from enumerate(rows, start=1)


def _csv(stream: BinaryIO | io.RawIOBase, file: RowFile) -> Numbered:
    # Python's own limit of 128 KB per field is less than a long document.
    csv.field_size_limit(2**31 - 1)
    lines = csv.reader(io.TextIOWrapper(_unpacked(stream, file), encoding="utf-8", newline=""), strict=True)
    try:
        header = next(lines, [])
    except csv.Error as error:
        raise DataError(f"{file.name}:1: not CSV: {error}") from error
    if len(set(header)) < len(header):
        raise DataError(f"{file.name}:1: two columns have the same name: {', '.join(header)}")
    while True:
        row: Any
        try:
            values = next(lines)
        except StopIteration:
            return
        except csv.Error as error:
            row = Unreadable(f"not CSV: {error}")
        else:
            if not values:
                continue
            row = dict(zip(header, values, strict=False))
            if len(values) != len(header):
                row = Unreadable(f"{len(values)} fields, the header has {len(header)} columns")
        yield lines.line_num, row


def _parquet(stream: BinaryIO | io.RawIOBase, file: RowFile) -> Numbered:
    # Small batches: a row of a data set can be a whole document, and `limit` may want only a few.
    batches = _parquet_file(stream, file).iter_batches(batch_size=256)
    yield from enumerate(row for batch in batches for row in batch.to_pylist())


def _parquet_file(stream: BinaryIO | io.RawIOBase, file: RowFile) -> Any:
    pyarrow = _import_pyarrow(file)
    from pyarrow import parquet

    try:
        # With a buffer the columns of a row group are read piece by piece, not whole.
        return parquet.ParquetFile(stream, buffer_size=_BLOCK)
    except pyarrow.lib.ArrowException as error:
        raise DataError(f"{file.name}: not parquet: {error}") from error


def _import_pyarrow(file: RowFile) -> Any:
    try:
        import pyarrow as pa
    except ImportError as error:
        raise DataError(f"{file.name}: needs pyarrow (pip install 'matrix-llm[hub]')") from error
    return pa


_READERS: dict[str, Callable[[BinaryIO | io.RawIOBase, RowFile], Numbered]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
_PLACES = {".jsonl": ":", ".json": " item ", ".csv": ":", ".parquet": " row "}
