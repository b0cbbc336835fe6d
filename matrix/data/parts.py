"""Reading the row journal: which rows there are, and what a line says.

Keys and states are read from the heads of lines, which is about a hundredth of the work of parsing them whole.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, cast

import orjson

from matrix.data.rows import AgentRow, Entry, Response, Row, RowError, RowKey, Score
from matrix.errors import DataError

_LOG = logging.getLogger(__name__)

_BLOCK = 1 << 20

# How orjson writes the head of a `Row`. The digits are limited so that a number fits where `sorting` puts it.
_ID = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_HEAD = re.compile(rb'\{"id":' + _ID + rb',"index":(\d{1,18}),"trial":(\d{1,9}),"status":"(?:(ok)|error)"')

_PAGE_BITS = 15

Head = tuple[int, int, int, int, bool]
"""Offset and length of a row's line in its part; index, trial, and whether it has an answer."""


class DoneKeys(AbstractSet[RowKey]):
    """A set of row keys, in about a bit for each.

    Bitmaps of 32,768 inputs each, by trial: keys are dense, since a run works through its input from the front.
    """

    def __init__(self, keys: Iterable[tuple[int, int]] = ()) -> None:
        self._pages: dict[tuple[int, int], bytearray] = {}
        self._count = 0
        for index, trial in keys:
            self.add(index, trial)

    def add(self, index: int, trial: int) -> None:
        """Add a key; one that is there already changes nothing."""
        place = (trial, index >> _PAGE_BITS)
        page = self._pages.get(place)
        if page is None:
            page = self._pages[place] = bytearray(1 << _PAGE_BITS >> 3)
        byte, bit = _bit(index)
        if not page[byte] & bit:
            page[byte] |= bit
            self._count += 1

    def __contains__(self, key: object) -> bool:
        index, trial = cast("tuple[int, int]", key)
        page = self._pages.get((trial, index >> _PAGE_BITS))
        byte, bit = _bit(index)
        return page is not None and page[byte] & bit != 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[RowKey]:
        for (trial, number), page in self._pages.items():
            for at, byte in enumerate(page, start=number << _PAGE_BITS >> 3):
                if byte:
                    yield from (RowKey(at << 3 | bit, trial) for bit in range(8) if byte >> bit & 1)


def done_keys(folder: Path, *, retry_errors: bool = False) -> DoneKeys:
    """Keys of the rows that need not be asked for again; none if there is no such folder.

    Args:
        folder: The `rows` folder of a run dir.
        retry_errors: Leave out the keys that have rows with an error only.

    Raises:
        DataError: A part can't be read.
    """
    done = DoneKeys()
    for part in part_files(folder):
        for _, _, index, trial, ok in heads(part):
            if ok or not retry_errors:
                done.add(index, trial)
    return done


def part_files(folder: Path) -> list[Path]:
    """The parts, by name."""
    return sorted(folder.glob("part-*.jsonl"))


def heads(part: Path) -> Iterator[Head]:
    """The head of each whole row; what isn't one is passed over, so that its key counts as not done.

    Raises:
        DataError: The part can't be read.
    """
    offset = 0
    try:
        with part.open("rb", buffering=_BLOCK) as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    # The end, as far as it is written: what a writer adds now is the rest of this line, not a line.
                    return
                length = len(line)
                head = _HEAD.match(line)
                if head and line.endswith(b"}\n"):
                    index, trial, ok = head.groups()
                    yield offset, length, int(index), int(trial), ok is not None
                else:
                    _LOG.warning("%s: what stands at byte %d is not a row", part, offset)
                offset += length
    except OSError as error:
        raise DataError(f"{part}: {error.strerror}") from error


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
        if "history" not in fields:
            return Row(**fields)
        return AgentRow(**{**fields, "history": [Entry.of(entry) for entry in fields["history"]]})
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise DataError(f"not a row of this version of matrix ({error}): {line[:80]!r}...") from error


def _bit(index: int) -> tuple[int, int]:
    """Place of a key in its page: the byte, and the bit in it."""
    return (index & (1 << _PAGE_BITS) - 1) >> 3, 1 << (index & 7)
