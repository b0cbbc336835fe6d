"""Read the rows of a data set from a file (jsonl, json, csv, parquet) or from the Hugging Face hub."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from matrix.data.rows import Example
from matrix.data.sources import ending, locate
from matrix.errors import DataError
from matrix.spec.workload import DatasetSpec

__all__ = ["Dataset", "load"]

Place = str
"""Where a row was read, for messages: `gsm8k.jsonl:17`, `part.parquet row 17`."""


@dataclass(frozen=True)
class Dataset:
    """A data set that was checked from end to end.

    Attributes:
        examples: Its rows in order; may be iterated any number of times, and reads them anew each time, so that memory
            stays flat whatever the size.
        total: How many rows that gives; None where nobody can know beforehand.
        fingerprint: What the rows depend on: `sha256:` of the file's bytes, or `id@revision` on the hub.
    """

    examples: Iterable[Example]
    total: int | None
    fingerprint: str


def load(spec: DatasetSpec) -> Dataset:
    """Open a data set and check every row that will be used.

    The rows are read once here, so that a bad one is known before anything starts, and again by whoever iterates.
    JSON numbers are 64 bit: longer whole numbers arrive as floats.

    Raises:
        DataError: The file or the hub can't be read, or a row is malformed, nameless or named like another one.
    """
    if spec.path is None:
        from matrix.data.hub import open_hub

        source = f"dataset.hub={spec.hub}"
        table, fingerprint = open_hub(spec)
        read: Callable[[], Iterator[tuple[Place, Any]]] = table.rows
    else:
        source = f"dataset.path={spec.path}"
        try:
            file = locate(spec.path)
            with file.open("rb") as stream:
                fingerprint = "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()
        except (OSError, DataError) as error:
            raise DataError(f"{source}: {error}") from error
        read = partial(_rows_of, file)
    examples = _Examples(read, spec.id_key, spec.limit)
    total = examples.check()
    if not total:
        raise DataError(f"{source}: the data set is empty")
    return Dataset(examples, total, fingerprint)


@dataclass(frozen=True)
class _Examples:
    """The rows of a source as examples."""

    read: Callable[[], Iterator[tuple[Place, Any]]]
    id_key: str | None
    limit: int | None

    def __iter__(self) -> Iterator[Example]:
        return (example for _, example in self._with_places())

    def check(self) -> int:
        """Read everything once: counts the rows and refuses two of one name."""
        seen: dict[str, Place] = {}
        total = 0
        for place, example in self._with_places():
            total += 1
            if self.id_key is not None:
                first = seen.setdefault(example.id, place)
                if first != place:
                    raise DataError(f"{place}: {self.id_key}={example.id} names a row already, at {first}")
        return total

    def _with_places(self) -> Iterator[tuple[Place, Example]]:
        for index, (place, columns) in enumerate(islice(self.read(), self.limit)):
            if not isinstance(columns, dict):
                raise DataError(f"{place}: a row is an object of columns, this is a {type(columns).__name__}")
            yield place, Example(_name(columns, self.id_key, index, place), index, columns)


def _name(columns: dict[str, Any], id_key: str | None, index: int, place: Place) -> str:
    if id_key is None:
        return str(index)
    if id_key not in columns:
        raise DataError(f"{place}: no column dataset.id_key={id_key} (columns: {', '.join(columns) or 'none'})")
    value = columns[id_key]
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise DataError(f"{place}: dataset.id_key={id_key} must hold text or whole numbers, not {value!r}")
    return str(value)


def _rows_of(file: Path) -> Iterator[tuple[Place, Any]]:
    kind = ending(file)
    read = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}["." + kind.split(".")[1]]
    try:
        yield from read(file)
    # EOFError, zlib.error: a .gz that ends early or is damaged.
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file.name}: cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file.name}: is not UTF-8: {error}") from error


@contextmanager
def _open(file: Path) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked."""
    suffix = file.suffix.lower()
    if suffix == ".gz":
        with gzip.open(file) as unpacked:
            yield cast("BinaryIO", unpacked)
    elif suffix == ".zst":
        pyarrow = _import_pyarrow(file)
        with io.BufferedReader(pyarrow.input_stream(str(file), compression="zstd")) as unpacked_zst:
            yield unpacked_zst
    else:
        with file.open("rb") as plain:
            yield plain


def _jsonl(file: Path) -> Iterator[tuple[Place, Any]]:
    import orjson

    with _open(file) as lines:
        for number, line in enumerate(lines, start=1):
            text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if text.isspace() or not text:
                continue
            place = f"{file.name}:{number}"
            try:
                row = orjson.loads(text)
            except orjson.JSONDecodeError as error:
                raise DataError(f"{place}: not JSON: {error.msg} (column {error.colno})") from error
            yield place, row


def _json(file: Path) -> Iterator[tuple[Place, Any]]:
    import orjson

    with _open(file) as stream:
        try:
            rows = orjson.loads(stream.read().removeprefix(b"\xef\xbb\xbf"))
        except orjson.JSONDecodeError as error:
            hint = "one object per line is .jsonl" if error.lineno > 1 else "a .json file holds one list of objects"
            raise DataError(f"{file.name}:{error.lineno}: not JSON: {error.msg} ({hint})") from error
    if not isinstance(rows, list):
        raise DataError(f"{file.name}: holds a {type(rows).__name__}, not a list of objects")
    for number, row in enumerate(rows, start=1):
        yield f"{file.name} item {number}", row


def _csv(file: Path) -> Iterator[tuple[Place, Any]]:
    # Python's own limit of 128 KB per field is less than a long document.
    csv.field_size_limit(2**31 - 1)
    with _open(file) as stream, io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
        lines = csv.reader(text, strict=True)
        try:
            header = next(lines, [])
            if len(set(header)) < len(header):
                raise DataError(f"{file.name}:1: two columns have the same name: {', '.join(header)}")
            for values in lines:
                if not values:
                    continue
                place = f"{file.name}:{lines.line_num}"
                if len(values) != len(header):
                    raise DataError(f"{place}: {len(values)} fields, the header has {len(header)} columns")
                yield place, dict(zip(header, values, strict=True))
        except csv.Error as error:
            raise DataError(f"{file.name}:{lines.line_num}: not CSV: {error}") from error


def _parquet(file: Path) -> Iterator[tuple[Place, Any]]:
    pyarrow = _import_pyarrow(file)
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as table:
            # Small batches: a row of a data set can be a whole document, and `limit` may want only a few.
            rows = (row for batch in table.iter_batches(batch_size=256) for row in batch.to_pylist())
            for number, row in enumerate(rows):
                yield f"{file.name} row {number}", row
    except pyarrow.lib.ArrowException as error:
        raise DataError(f"{file.name}: not parquet: {error}") from error


def _import_pyarrow(file: Path) -> Any:
    try:
        import pyarrow as pa
    except ImportError as error:
        raise DataError(f"{file.name}: {file.suffix} needs pyarrow: pip install 'matrix-llm[hub]'") from error
    return pa
