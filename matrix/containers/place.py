"""Where a replica has its containers, and how it finds those that a dead one has left on this machine."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from matrix.errors import AppError

_NEW = "."
_MODE = 0o711
"""Containers' users may be others than this process's; who doesn't know a name in it gets nowhere."""


class Place:
    """A folder of a living process: it holds a lock on it, which ends with it, however it ends.

    Attributes:
        id: Its name; containers have it in theirs.
        folder: The folder.
    """

    def __init__(self, root: Path) -> None:
        self.id = uuid.uuid4().hex[:12]
        self.folder = root / self.id
        # Under another name until it is locked: it would be taken for a dead one's.
        made = Path(tempfile.mkdtemp(prefix=_NEW, dir=root))
        made.chmod(_MODE)
        self._lock = _lock(made)
        made.rename(self.folder)

    def remove(self) -> None:
        """Remove it, with all that is in it."""
        remove_tree(self.folder)
        assert self._lock is not None  # noqa: S101
        os.close(self._lock)


def root_folder() -> Path:
    """The folder of all places of this user on this machine.

    Raises:
        AppError: Somebody else has made it.
    """
    root = Path(tempfile.gettempdir(), f"matrix-containers-{os.geteuid()}")
    root.mkdir(mode=_MODE, exist_ok=True)
    found = root.lstat()
    if root.is_symlink() or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise AppError(f"{root} isn't this user's own, or others may write to it: remove it, or set engine.env.TMPDIR")
    # Whatever the umask was.
    root.chmod(_MODE)
    return root


def left_behind(root: Path) -> Iterator[Path]:
    """Folders of processes that are dead. The caller has each to itself until it asks for the next."""
    for folder in root.iterdir():
        lock = None if folder.name.startswith(_NEW) else _lock(folder)
        if lock is not None:
            try:
                yield folder
            finally:
                os.close(lock)


def is_alive(root: Path, place: str) -> bool:
    """Whether the process of a place lives."""
    lock = _lock(root / place)
    if lock is not None:
        os.close(lock)
        return False
    return (root / place).exists()


def remove_tree(folder: Path) -> None:
    """Remove a folder, also what a container has made unreadable in it."""
    if os.geteuid() == 0:
        shutil.rmtree(folder)
        return
    # Root of a namespace in which only this user is mapped may do what its owner may after a chmod.
    subprocess.run(["unshare", "--user", "--map-root-user", "rm", "-rf", "--", str(folder)], check=True)


def _lock(folder: Path) -> int | None:
    """The lock of a folder; None if somebody has it, or the folder is gone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
