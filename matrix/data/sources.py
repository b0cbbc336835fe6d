"""Where the rows of a data set lie: paths, `package:` paths and the endings that can be read. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from matrix.errors import DataError, did_you_mean
from matrix.spec.workload import DatasetSpec

COMPRESSIONS = (".gz", ".zst")
FORMATS = (".jsonl", ".json", ".csv", ".parquet")
ENDINGS = (*FORMATS, *(fmt + packed for fmt in FORMATS if fmt != ".parquet" for packed in COMPRESSIONS))
"""Every ending that can be read; parquet brings its own compression."""


def check_dataset(spec: DatasetSpec) -> str | None:
    """Check that `dataset.path` can be read as far as its name tells; fast enough for checking a config.

    Returns:
        What is wrong and the way out, or None if nothing is (or the rows come from the hub).
    """
    if spec.path is None:
        return None
    try:
        locate(spec.path)
    except DataError as error:
        return str(error)
    return None


def locate(path: str) -> Path:
    """Find the file that `dataset.path` means.

    Args:
        path: A file name (`~` and relative names are fine), or `package:PACKAGE/FILE`: a file in an installed package.

    Raises:
        DataError: There is no such file, it is no file, or its ending says nothing; the message names the way out.
    """
    file = _in_package(path.removeprefix("package:")) if path.startswith("package:") else Path(path).expanduser()
    if file.is_dir():
        raise DataError(f"a folder, not a file ({_readable_in(file)})")
    if not file.exists():
        raise DataError(f"no such file ({_way_out(file)})")
    ending(file)
    return file


def ending(file: Path) -> str:
    """The ending that says how to read a file: one of `ENDINGS`.

    Raises:
        DataError: It is none of them; the message has the nearest.
    """
    name = file.name.lower()
    found = next((known for known in sorted(ENDINGS, key=len, reverse=True) if name.endswith(known)), None)
    if found is None:
        packed = file.suffix.lower() in COMPRESSIONS
        given = "".join(file.suffixes[-2:] if packed else file.suffixes[-1:]).lower()
        raise DataError(f"unknown ending '{given}' ({did_you_mean(given, ENDINGS)})")
    return found


def _in_package(path: str) -> Path:
    """`PACKAGE/FILE` as a path; the package isn't imported, since the one that holds a data set may be slow to load."""
    package, _, file = path.partition("/")
    try:
        found = find_spec(package)
    except (ImportError, ValueError):
        found = None
    if found is None or not found.submodule_search_locations or not file:
        raise DataError(f"no installed package '{package}' with a file '{file}' (package:PACKAGE/FILE)")
    places = [Path(place) / file for place in found.submodule_search_locations]
    return next((place for place in places if place.exists()), places[0])


def _way_out(file: Path) -> str:
    if not file.parent.is_dir():
        return f"nor is there a folder {file.parent}"
    readable = _readable(file.parent.iterdir())
    return did_you_mean(file.name, readable) if readable else f"no file with rows in {file.parent.resolve()}"


def _readable_in(folder: Path) -> str:
    readable = _readable(folder.iterdir())
    return f"files with rows in it: {', '.join(readable[:10])}" if readable else "and no file with rows in it"


def _readable(files: Iterable[Path]) -> list[str]:
    return sorted(file.name for file in files if file.is_file() and file.name.lower().endswith(ENDINGS))
