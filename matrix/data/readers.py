"""Read a data set: from files (jsonl, json, csv, parquet), wherever they lie, or from the Hugging Face hub."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from matrix.data.columns import find, names
from matrix.data.formats import FileRows, Unreadable, scan
from matrix.data.rows import Example
from matrix.data.sources import LocalFile, RowFile, check_dataset, locate
from matrix.errors import DataError
from matrix.spec.workload import DatasetSpec

__all__ = ["BadRow", "Dataset", "check_dataset", "load"]

_FIRST_ROWS = 100
"""A data set that begins with so many bad rows and no good one is the wrong file."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that can't be read; it has its place among the rows like any other.

    Attributes:
        id: Its number, as text.
        index: Its place in the input, from 0.
        place: Where it was read: `gsm8k.jsonl:17`, `part.parquet row 17`.
        message: What is wrong with it.
    """

    id: str
    index: int
    place: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


@dataclass(frozen=True)
class Dataset:
    """A data set that can be read.

    Attributes:
        examples: Its rows in order; may be iterated any number of times, and reads them anew each time, so that memory
            stays flat whatever the size. Iterating raises DataError where a file ends early or a storage fails, and
            with `dataset.on_bad_row=stop` at the first bad row.
        total: How many rows that gives; None where only reading them all could tell (files elsewhere, streaming).
        fingerprint: What the rows depend on: `sha256:` of the file's bytes, `files:` and a hash over several files or
            over what their storage says of them, or `id@revision` on the hub.
    """

    examples: Iterable[Example | BadRow]
    total: int | None
    fingerprint: str


class _Part(Protocol):
    """A file, or a table of the hub."""

    def rows(self) -> Iterator[tuple[int, Any]]: ...

    def place(self, number: int) -> str: ...


def load(spec: DatasetSpec) -> Dataset:
    """Open a data set.

    Files on this machine are read through once here, to count their rows and to know their content again; with
    `dataset.on_bad_row=stop` once more, so that a bad row is known before anything starts. What lies elsewhere is read
    by whoever iterates. JSON numbers are 64 bit: longer whole numbers arrive as floats.

    Raises:
        DataError: A file or the hub can't be read; there are no rows; the first ones are all bad; or one is and
            `dataset.on_bad_row` is `stop`.
    """
    parts: Sequence[_Part]
    if spec.path is None:
        from matrix.data.hub import open_hub

        source = f"dataset.hub={spec.hub}"
        table, fingerprint = open_hub(spec)
        parts, total = [table], table.total
    else:
        source = f"dataset.path={spec.path}"
        try:
            files = locate(spec.path)
            fingerprint, total = _scan(files, spec.limit)
        except DataError as error:
            raise DataError(f"{source}: {error}") from error
        parts = [FileRows(file) for file in files]
    examples = _Examples(parts, spec)
    _refuse_wrong_files(examples, source)
    if spec.on_bad_row == "stop" and spec.path is not None and total is not None:
        total = sum(1 for _ in examples)
    elif total is not None and spec.limit is not None:
        total = min(total, spec.limit)
    return Dataset(examples, total, fingerprint)


@dataclass(frozen=True)
class _Examples:
    """The rows of all parts as examples."""

    parts: Sequence[_Part]
    spec: DatasetSpec

    def __iter__(self) -> Iterator[Example | BadRow]:
        id_key, stop = self.spec.id_key, self.spec.on_bad_row == "stop"
        for index, (part, number, columns) in enumerate(islice(self._rows(), self.spec.limit)):
            if isinstance(columns, dict):
                name = str(index) if id_key is None else _name(columns, id_key)
            elif isinstance(columns, Unreadable):
                name = columns
            else:
                name = Unreadable(f"a row is an object of columns, this is a {type(columns).__name__}")
            if isinstance(name, str):
                yield Example(name, index, columns)
                continue
            bad = BadRow(str(index), index, part.place(number), name.message)
            if stop:
                raise DataError(f"{bad} (dataset.on_bad_row=error would leave it out, as a row with an error)")
            yield bad

    def _rows(self) -> Iterator[tuple[_Part, int, Any]]:
        for part in self.parts:
            for number, columns in part.rows():
                yield part, number, columns


def _name(columns: dict[str, Any], id_key: str) -> str | Unreadable:
    value = find(columns, id_key)
    if isinstance(value, int | str) and not isinstance(value, bool) and value != "":
        return str(value)
    if value is None:
        return Unreadable(f"no value at dataset.id_key={id_key} (columns: {names(columns)})")
    return Unreadable(f"dataset.id_key={id_key} must hold text or whole numbers, not {value!r}")


def _scan(files: Sequence[RowFile], limit: int | None) -> tuple[str, int | None]:
    """Fingerprint of the files, and how many rows they have; None if some lie elsewhere."""
    total, local, marks = 0, True, []
    for file in files:
        if isinstance(file, LocalFile):
            mark, count = scan(file, limit)
            total += count
        else:
            mark, local = f"{file.name} {file.version}", False
        marks.append(mark)
    if local and len(marks) == 1:
        return f"sha256:{marks[0]}", total
    return "files:" + hashlib.sha256("\n".join(marks).encode()).hexdigest(), total if local else None


def _refuse_wrong_files(examples: _Examples, source: str) -> None:
    """Look at the first rows, so that a wrong file doesn't start an engine. One good row is enough."""
    bad = None
    for example in islice(examples, _FIRST_ROWS):
        if isinstance(example, Example):
            return
        bad = bad or example
    if bad is None:
        raise DataError(f"{source}: the data set is empty")
    raise DataError(f"{source}: none of the first rows can be read; {bad}")
