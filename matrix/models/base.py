"""What every kind of source shares: the answer, the cache and the lock on one of its entries."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from matrix.errors import AppError

Say = Callable[[str], None]
"""Takes one line for the user: what is being done and how long it may take."""


@dataclass(frozen=True)
class ResolvedModel:
    """What an engine is given to load.

    Attributes:
        path: A folder, or a hub id that the engine fetches itself.
        revision: Commit on the hub, version of the package, digest of the S3 listing; None for a folder.
        checksum: `sha256:...` of the weights of a folder (see `matrix.models.weights.checksum`); None where the
            revision says it (the hub) or the folder is too large to read it for that.
        origin: The source as given.
    """

    path: str
    revision: str | None
    checksum: str | None
    origin: str


def cache_dir() -> Path:
    """The folder for everything that is fetched or converted: `$MATRIX_CACHE`, else `~/.cache/matrix`."""
    return Path(os.environ.get("MATRIX_CACHE") or "~/.cache/matrix").expanduser().absolute()


@contextmanager
def locked(entry: Path, say: Say, limit_s: float) -> Iterator[int]:
    """Hold the lock of a cache entry, so that runs that start at once fill it once.

    Args:
        entry: The file or folder to be filled; its parent is made if need be.
        say: Told when another process holds the lock.
        limit_s: Seconds to wait for that process.

    Yields:
        The lock's file descriptor. A child that inherits it keeps the lock for as long as it lives, also when this
        process is killed.

    Raises:
        AppError: The other process held it for longer than `limit_s`.
    """
    entry.parent.mkdir(parents=True, exist_ok=True)
    with (entry.parent / f".{entry.name}.lock").open("a") as handle:
        deadline = time.monotonic() + limit_s
        waiting = False
        while not _try_lock(handle):
            if time.monotonic() > deadline:
                message = f"another process has been filling {entry} for over {limit_s:.0f} s; see what it does, end it"
                raise AppError(message)
            if not waiting:
                say(f"waiting for another process that is filling {entry}")
            waiting = True
            time.sleep(0.1)
        yield handle.fileno()


def _try_lock(handle: IO[str]) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_json(path: Path, data: Any) -> None:
    """Write `data` so that a reader sees the old file or the new one, never a part."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(data, indent=2) + "\n")
    partial.replace(path)
