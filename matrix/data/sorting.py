"""All rows of a journal in order of (index, trial), each once: to iterate, or as one file.

Rows can be more than memory holds, so the heads are sorted, in runs, and the lines are fetched one at a time. Of
several rows of a key, one with an answer wins over one with an error; among equals the later one in its part. (Parts
have no common clock. A key lives in one part, unless its row was asked for again by another writer.)
"""

from __future__ import annotations

import heapq
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO

from matrix.data.parts import decode_row, heads, part_files
from matrix.data.rows import Row
from matrix.errors import DataError

# index, trial, ok, part, offset, length. Big-endian, so that the bytes sort as the tuple does.
_RECORD = struct.Struct(">QI?IQQ")
_KEY_SIZE = 12

_RUN = 100_000
"""Records that are sorted at a time: 7 MB."""
_SPILL_BYTES = 4 << 20
"""More than that goes to the disk."""
_READ_RECORDS = 500
"""Records of a run that are read at a time."""


def read_rows(folder: Path) -> Iterator[Row]:
    """Rows of all parts in order of (index, trial), each once.

    Memory is about 30 MB, and 16 KB per 100,000 rows. Beyond 100,000 rows a temporary file in `folder` holds 33 bytes
    for each; it has no name, so that nothing of it is left however the process ends.

    Raises:
        DataError: A part can't be read; a line is damaged, or was written by a version whose rows are different.
    """
    for line in _sorted_lines(folder):
        try:
            yield decode_row(line)
        except DataError as error:
            way_out = "take the line out of its part, and a resume asks for the row again"
            raise DataError(f"{folder}: {error} ({way_out})") from error


def write_sorted(folder: Path, target: Path) -> int:
    """Write the rows of all parts to one file, in order of (index, trial), each once; it appears when it is whole.

    Memory as for `read_rows`. It touches nothing but the file, so that it can run in any thread.

    Args:
        folder: The `rows` folder of a run dir.
        target: The file. One that ends in `.parquet` gets the columns of `matrix.data.row_table`, any other the lines
            as they are.

    Returns:
        How many rows that were.

    Raises:
        DataError: The file can't be written; a former one is left as it was. Or as for `read_rows`.
    """
    half = half_of(target)
    try:
        with half.open("wb", buffering=1 << 20) as file:
            count = _write(_sorted_lines(folder), file, target)
            file.flush()
            os.fsync(file.fileno())
        half.replace(target)
    except OSError as error:
        raise DataError(f"{target}: {error.strerror or error}; the rows are kept in {folder}") from error
    finally:
        half.unlink(missing_ok=True)
    return count


def half_of(target: Path) -> Path:
    """Where a file is written before it gets its name. Only a kill leaves it; `Journal` then removes it."""
    return target.with_name(f".{target.name}.half")


def _write(lines: Iterator[bytes], file: IO[bytes], target: Path) -> int:
    if target.suffix == ".parquet":
        from matrix.data.row_table import write_parquet

        return write_parquet(lines, file)
    count = 0
    for line in lines:
        file.write(line)
        count += 1
    return count


def _sorted_lines(folder: Path) -> Iterator[bytes]:
    parts = part_files(folder)
    with ExitStack() as opened:
        try:
            files = [opened.enter_context(part.open("rb", buffering=0)).fileno() for part in parts]
            spill = opened.enter_context(SpooledTemporaryFile(_SPILL_BYTES, dir=str(folder)))
            for record in _last_of_each(heapq.merge(*_sorted_runs(_records(parts), spill))):
                _, _, _, part, offset, length = _RECORD.unpack(record)
                yield os.pread(files[part], length, offset)
        except OSError as error:
            raise DataError(f"{error.filename or folder}: {error.strerror} (while rows were sorted)") from error


def _records(parts: Sequence[Path]) -> Iterator[bytes]:
    pack = _RECORD.pack
    for number, part in enumerate(parts):
        for offset, length, index, trial, ok in heads(part):
            yield pack(index, trial, ok, number, offset, length)


def _sorted_runs(records: Iterator[bytes], spill: IO[bytes]) -> list[Iterator[bytes]]:
    """Sort as many records at a time as memory may hold; all runs but the last go to `spill`."""
    runs: list[Iterator[bytes]] = []
    while len(run := sorted(islice(records, _RUN))) == _RUN:
        runs.append(_spilled(spill, spill.tell(), spill.write(b"".join(run))))
    return [*runs, iter(run)]


def _spilled(spill: IO[bytes], start: int, size: int) -> Iterator[bytes]:
    """The records of one run; the file's position is shared by all of them."""
    step = _RECORD.size
    for place in range(start, start + size, step * _READ_RECORDS):
        spill.seek(place)
        block = spill.read(min(step * _READ_RECORDS, start + size - place))
        yield from (block[at : at + step] for at in range(0, len(block), step))


def _last_of_each(records: Iterator[bytes]) -> Iterator[bytes]:
    """The last record of each key."""
    last: bytes | None = None
    for record in records:
        if last is not None and last[:_KEY_SIZE] != record[:_KEY_SIZE]:
            yield last
        last = record
    if last is not None:
        yield last
