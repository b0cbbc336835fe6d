"""The journal of steps: what calls of models and tools gave, so that nothing is paid for twice.

`steps/` in a run dir. A peer appends a line for every completed call, one `write` each, as the row journal does; so a
kill takes away at most the calls that were under way. A line is of use until its row is finished. Peers therefore write
segments, and remove a segment when all its rows are; what a dead peer left stays until the end of the run, since the
row may need it again and again.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from matrix.data.rows import RowKey
from matrix.errors import DataError

_SEGMENT_BYTES = 16 << 20
_HEAD = re.compile(rb'\{"index":(\d{1,18}),"trial":(\d{1,9}),')


class Step(NamedTuple):
    """A completed call.

    Attributes:
        at: Its place in the workflow: the turn, the branch where there are several, and the call's number in the turn.
        name: `llm`, or the tool's name.
        digest: Of what was asked: a replay that asks for something else makes the call anew.
        result: What came of it.
    """

    at: str
    name: str
    digest: str
    result: Any


class StepJournal:
    """Writer of one peer's steps.

    Args:
        folder: The folder `steps`; made if it isn't there.
        writer: Name of the peer; each of its lives has files of its own.
    """

    def __init__(self, folder: Path, writer: str) -> None:
        self._folder = folder
        self._name = f"part-{writer}.{secrets.token_hex(4)}"
        self._number = -1
        self._file = -1
        self._size = 0
        self._rows: dict[RowKey, set[int]] = {}
        self._living: dict[int, int] = {}

    def append(self, key: RowKey, step: Step) -> None:
        """Write a step; it outlives the process as soon as this returns.

        Raises:
            DataError: It can't be written.
        """
        fields = {"index": key.index, "trial": key.trial, **step._asdict()}
        try:
            # Without a way out for what JSON doesn't know: a replay has to see what the role saw.
            line = orjson.dumps(fields, None, orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY)
        except TypeError as error:
            raise DataError(f"the result of {step.name} can't be written as JSON: {error}") from error
        try:
            if self._file < 0 or self._size > _SEGMENT_BYTES:
                self._next_segment()
            written = os.write(self._file, line)
            if written < len(line):
                os.ftruncate(self._file, self._size)
                raise DataError(f"{self._path(self._number)}: the disk is full")
        except OSError as error:
            raise DataError(f"{self._path(self._number)}: {error.strerror}") from error
        self._size += len(line)
        segments = self._rows.setdefault(key, set())
        if self._number not in segments:
            segments.add(self._number)
            self._living[self._number] = self._living.get(self._number, 0) + 1

    def finished(self, key: RowKey) -> None:
        """The row's steps aren't needed any more."""
        for number in self._rows.pop(key, ()):
            self._living[number] -= 1
            if not self._living[number] and number != self._number:
                self._path(number).unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the file; what it holds stays."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _next_segment(self) -> None:
        before = self._number
        self.close()
        self._number += 1
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self._path(self._number), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._size = 0
        if not self._living.get(before, 1):
            self._path(before).unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self._folder / f"{self._name}.{number:05}.jsonl"


class StepIndex:
    """Where the steps of unfinished rows stand, in files that nobody writes any more."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._places: dict[RowKey, list[tuple[Path, int, int]]] = {}

    def read(self, wanted: Callable[[RowKey], bool], writer: str = "*") -> None:
        """Take in what there is of rows that are wanted.

        Args:
            wanted: Whether a row is.
            writer: Of this peer alone.

        Raises:
            DataError: A file can't be read.
        """
        known = {path for places in self._places.values() for path, _, _ in places}
        for path in sorted(self._folder.glob(f"part-{writer}.*.jsonl")):
            if path in known:
                continue
            try:
                self._read(path, wanted)
            except OSError as error:
                raise DataError(f"{path}: {error.strerror}") from error

    def of(self, key: RowKey) -> list[bytes]:
        """The row's steps as they were written."""
        lines = []
        for path, offset, length in self._places.get(key, ()):
            with path.open("rb") as file:
                lines.append(os.pread(file.fileno(), length, offset))
        return lines

    def finished(self, key: RowKey) -> None:
        """The row's steps aren't needed any more."""
        self._places.pop(key, None)

    def _read(self, path: Path, wanted: Callable[[RowKey], bool]) -> None:
        offset = 0
        with path.open("rb") as lines:
            for line in lines:
                head = _HEAD.match(line)
                # Half a line is what a kill left: that call counts as not made.
                if head and line.endswith(b"}\n"):
                    key = RowKey(int(head[1]), int(head[2]))
                    if wanted(key):
                        self._places.setdefault(key, []).append((path, offset, len(line)))
                offset += len(line)


def decode_steps(lines: list[bytes]) -> dict[str, Step]:
    """Steps by their place; of two at one place the later counts."""
    steps = {}
    for line in lines:
        fields = orjson.loads(line)
        steps[fields["at"]] = Step(fields["at"], fields["name"], fields["digest"], fields["result"])
    return steps


def remove_steps(folder: Path) -> None:
    """Remove what a run that is over has of them."""
    shutil.rmtree(folder, ignore_errors=True)


__all__ = ["Step", "StepIndex", "StepJournal", "decode_steps", "remove_steps"]
