"""Where the rows of a data set lie: `dataset.path` as files. Standard library only, but for files elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from glob import glob, has_magic
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

from matrix.data.naming import ending, is_readable, natural
from matrix.data.remote import RemoteFile, check_remote, find_remote, is_remote
from matrix.errors import DataError, did_you_mean
from matrix.spec.workload import DatasetSpec


@dataclass(frozen=True)
class LocalFile:
    """A file of rows on this machine.

    Attributes:
        name: What it is called in messages: as it was given.
        path: Where it is.
    """

    name: str
    path: Path

    def open(self) -> BinaryIO:
        """Its bytes as they lie there."""
        return self.path.open("rb", buffering=0)


RowFile = LocalFile | RemoteFile


def check_dataset(spec: DatasetSpec) -> str | None:
    """Check that `dataset.path` can be read as far as names tell; fast enough for checking a config.

    Returns:
        What is wrong and the way out, or None if nothing is (or the rows come from the hub).
    """
    if spec.path is None:
        return None
    try:
        locate(spec.path, ask_remotes=False)
    except DataError as error:
        return str(error)
    return None


def locate(paths: str | list[str], *, ask_remotes: bool = True) -> list[RowFile]:
    """Find the files that `dataset.path` means: those of a list one after another, those of a pattern in natural order.

    Args:
        paths: File names (`~` and relative names are fine), patterns, `package:PACKAGE/FILE` (a file in an installed
            package) and addresses such as `s3://BUCKET/FILE`.
        ask_remotes: Whether to look for files behind addresses; without it they are checked by name and left out.

    Raises:
        DataError: There is no such file, it is no file, its ending says nothing, or it is there twice; the message
            names the way out.
    """
    files: list[RowFile] = []
    for path in [paths] if isinstance(paths, str) else paths:
        try:
            if not is_remote(path):
                files += _on_this_machine(path)
            elif ask_remotes:
                files += find_remote(path)
            else:
                check_remote(path)
        except DataError as error:
            raise error if isinstance(paths, str) else DataError(f"{path}: {error}") from error
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}") from error
    # One file has many spellings.
    same = Counter(str(file.path.resolve()) if isinstance(file, LocalFile) else file.name for file in files)
    twice = [name for name, count in same.items() if count > 1]
    if twice:
        raise DataError(f"{twice[0]} is there twice (list it once, or give patterns that don't overlap)")
    return files


def _on_this_machine(path: str) -> list[LocalFile]:
    file = _in_package(path.removeprefix("package:")) if path.startswith("package:") else Path(path).expanduser()
    if file.is_dir():
        raise DataError(f"a folder, not a file ({_readable_in(file)})")
    if file.exists():
        ending(file.name)
        return [LocalFile(path, file)]
    if not has_magic(path):
        raise DataError(f"no such file ({_way_out(file)})")
    # Path.glob would take hidden files too.
    fitting = glob(str(file), recursive=True)  # noqa: PTH207
    found = sorted((name for name in fitting if Path(name).is_file()), key=natural)
    if not found:
        folder = next(parent for parent in file.parents if not has_magic(str(parent)))
        raise DataError(f"no file fits this pattern ({_readable_in(folder)})")
    for name in found:
        try:
            ending(name)
        except DataError as error:
            raise DataError(f"fits {name}: {error}") from error
    return [LocalFile(name, Path(name)) for name in found]


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
    if not folder.is_dir():
        return f"there is no folder {folder}"
    readable = _readable(folder.iterdir())
    return f"files with rows in it: {', '.join(readable[:10])}" if readable else "and no file with rows in it"


def _readable(files: Iterable[Path]) -> list[str]:
    return sorted((file.name for file in files if file.is_file() and is_readable(file.name)), key=natural)
