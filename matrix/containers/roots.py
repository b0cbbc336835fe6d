"""Who a container's root is on this machine: this process's user, or where that is root a number that owns nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Protocol

from matrix.errors import AppError

_FIRST, _COUNT = 0x70010000, 0x10000
"""Numbers of this machine that a container's users are: above those of distributions, /etc/subuid and systemd-nspawn
(https://systemd.io/UIDS-GIDS)."""
_KEPT = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID")
"""Capabilities that package managers need; they hold for the files of the container only."""
_OVERLAY = 'mount -t overlay overlay -o "$1" "$2" || exit 125; shift 2; exec "$@"'
_IDMAP = Path(__file__).with_name("idmap.py")


class Root(Protocol):
    """Runs commands as a container's root, on this machine."""

    isolation: list[str]
    """Options of bubblewrap."""
    unpack: list[str]
    """Options of tar."""

    def inside(self, command: list[str]) -> list[str]:
        """A command that sees this machine's files."""

    def over(self, image: Path, container: Path, command: list[str], *, is_ours: bool) -> list[str]:
        """A command that sees an image's files in the folder `merged` of a container, and may change them there.

        Args:
            image: The files.
            container: Folder with `lower`, `upper`, `work` and `merged`.
            command: The command.
            is_ours: The files have been unpacked for this root, and so are its own.
        """

    def own(self, folder: Path) -> None:
        """Give it a folder."""

    def close(self) -> None:
        """It isn't needed any more."""


class OrdinaryUser:
    """This user; all files of a container are theirs."""

    isolation = ["--unshare-user", "--disable-userns", "--uid", "0", "--gid", "0"]
    unpack = ["--no-same-owner"]

    def inside(self, command: list[str]) -> list[str]:
        """See `Root`."""
        return ["unshare", "--user", "--map-root-user", *command]

    def over(self, image: Path, container: Path, command: list[str], *, is_ours: bool) -> list[str]:  # noqa: ARG002
        """See `Root`."""
        line = ["unshare", "--user", "--map-root-user", "--mount", "--propagation", "private"]
        return [*line, "sh", "-c", _OVERLAY, "sh", *_layers(image, container, ",userxattr"), *command]

    def own(self, folder: Path) -> None:
        """See `Root`."""

    def close(self) -> None:
        """See `Root`."""


class Stranger:
    """A range of numbers that own nothing here, in a user namespace of their own; this process has to be root.

    Raises:
        AppError: There can be no such namespace.
    """

    # A namespace more would map one user only; the filter refuses those that a program would make.
    isolation = [part for name in _KEPT for part in ("--cap-add", f"CAP_{name}")]
    unpack = ["--same-owner", "--numeric-owner"]

    def __init__(self) -> None:
        line = ["unshare", "--user", "sh", "-c", "echo; read never"]
        with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as made:
            assert made.stdin and made.stdout and made.stderr  # noqa: S101, PT018
            if not made.stdout.readline():
                raise AppError(f"no user namespace can be made: {made.stderr.read().decode().strip()}")
            try:
                for kind in ("uid", "gid"):
                    Path(f"/proc/{made.pid}/{kind}_map").write_text(f"0 {_FIRST} {_COUNT}")
            except OSError as error:
                numbers = f"{_FIRST} to {_FIRST + _COUNT - 1}"
                raise AppError(f"root has no users {numbers} here, run as another user: {error}") from error
            self._descriptor = os.open(f"/proc/{made.pid}/ns/user", os.O_RDONLY)
        self._namespace = f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def inside(self, command: list[str]) -> list[str]:
        """See `Root`."""
        return ["nsenter", f"--user={self._namespace}", "--", *command]

    def over(self, image: Path, container: Path, command: list[str], *, is_ours: bool) -> list[str]:
        """See `Root`."""
        line = ["unshare", "--mount", "--propagation", "private"]
        lower = image
        if not is_ours:
            lower = container / "lower"
            line += [sys.executable, "-I", "-S", str(_IDMAP), self._namespace, str(image), str(lower)]
        return [*line, "sh", "-c", _OVERLAY, "sh", *_layers(lower, container), *self.inside(command)]

    def own(self, folder: Path) -> None:
        """See `Root`."""
        os.chown(folder, _FIRST, _FIRST)

    def close(self) -> None:
        """See `Root`."""
        os.close(self._descriptor)


def root_of_containers() -> Root:
    """That of this process.

    Raises:
        AppError: There is none.
    """
    return Stranger() if os.geteuid() == 0 else OrdinaryUser()


def _layers(lower: Path, container: Path, more: str = "") -> list[str]:
    layers = f"lowerdir={lower},upperdir={container}/upper,workdir={container}/work{more}"
    return [layers, f"{container}/merged"]
