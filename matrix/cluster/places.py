"""The folder that Ray has on a node, below the node's folder for temporary files.

Where Slurm kills a job at once, nobody is left to remove it: the next one of the same user on that node does.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import tempfile
from contextlib import suppress
from pathlib import Path

_PREFIX = "matrix-ray-"
_OWNER = "owner"
_LONGEST = 24
"""Characters of a folder for temporary files that Ray can be in."""


def make_place() -> tuple[Path, int]:
    """Make a folder, and remove those that nobody has any more.

    Returns:
        The folder, and a file descriptor: the folder is somebody's for as long as a process has that open.
    """
    _remove_ownerless()
    given = tempfile.gettempdir()
    # The path of a Unix socket has 107 characters at most, and Ray's own part of it takes most of them.
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=given if len(given) <= _LONGEST else "/tmp"))  # noqa: S108
    owner = os.open(folder / _OWNER, os.O_WRONLY | os.O_CREAT, 0o600)
    fcntl.flock(owner, fcntl.LOCK_EX)
    # Only now: without the name nobody takes it for one that is left over.
    os.write(owner, socket.gethostname().encode())
    return folder, owner


def _remove_ownerless() -> None:
    places = {tempfile.gettempdir(), "/tmp"}  # noqa: S108
    for path in (found for place in places for found in Path(place).glob(f"{_PREFIX}*/{_OWNER}")):
        # Another user's, one that is in use, or one that has just gone.
        with suppress(OSError), path.open("rb") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.fstat(owner.fileno()).st_uid == os.getuid()
            # The folder for temporary files may be one that nodes share, and locks don't always reach as far.
            if mine and owner.read() == socket.gethostname().encode():
                shutil.rmtree(path.parent, ignore_errors=True)
