"""What the name of a file of rows tells: its ending, and its place among others. Standard library only."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from matrix.errors import DataError, did_you_mean

COMPRESSIONS = (".gz", ".zst")
FORMATS = (".jsonl", ".json", ".csv", ".parquet")
ENDINGS = (*FORMATS, *(fmt + packed for fmt in FORMATS if fmt != ".parquet" for packed in COMPRESSIONS))
"""Every ending that can be read; parquet brings its own compression."""


def is_readable(name: str) -> bool:
    """Whether a name has one of `ENDINGS`."""
    return name.lower().endswith(ENDINGS)


def ending(name: str) -> str:
    """The ending that says how to read a file: one of `ENDINGS`.

    Raises:
        DataError: It is none of them; the message has the nearest.
    """
    found = next((known for known in sorted(ENDINGS, key=len, reverse=True) if name.lower().endswith(known)), None)
    if found is None:
        suffixes = PurePosixPath(name.lower()).suffixes
        given = "".join(suffixes[-2:] if suffixes and suffixes[-1] in COMPRESSIONS else suffixes[-1:])
        raise DataError(f"unknown ending '{given}' ({did_you_mean(given, ENDINGS)})")
    return found


def natural(name: str) -> tuple[list[str | int], str]:
    """Key for sorting names as people do: `part-2` before `part-10`."""
    return [int(part) if number % 2 else part for number, part in enumerate(re.split(r"(\d+)", name))], name
