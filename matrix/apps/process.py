"""One process of a replica under the guard, with its log."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

LAST_LINES = 25
"""Lines of an engine's log that an error carries."""


# Ray's token, and the number of threads that Ray gives to an actor of so many CPUs: engines have numbers of their own.
_RAYS = ("RAY_AUTH_TOKEN", "OMP_NUM_THREADS")


class GuardedProcess:
    """A process tree that ends with this process, whatever ends it.

    Args:
        title: What people call it.
        command: What is run.
        environment: On top of this process's own, less Ray's token, with which an engine has no business.
        log: File that its output goes to.
        fill_in: Arguments that stand for others, such as `{port}`.
        secrets: Content of a file whose path `{secrets}` stands for; it is gone with the process.
    """

    def __init__(
        self,
        title: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        fill_in: Mapping[str, str],
        secrets: str | None = None,
    ) -> None:
        self.title = title
        self.log = log
        guard = [sys.executable, "-m", "matrix.apps.guard"]
        filled = dict(fill_in)
        if secrets is not None:
            # Made with mode 0600.
            handle, path = tempfile.mkstemp(prefix="matrix-", suffix=".yaml")
            with os.fdopen(handle, "w") as file:
                file.write(secrets)
            filled["{secrets}"] = path
            # The guard removes it: this process may be killed.
            guard += ["--remove", path]
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(_RAYS)}
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*guard, *(filled.get(part, part) for part in command)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=inherited | dict(environment),
                start_new_session=True,
            )

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def last_line(self) -> str:
        """Its last word on what it is doing."""
        lines = self.log.read_text(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "starting")

    def failure(self) -> str:
        """What became of it, with its last lines."""
        code = self.exit_code
        what = "did not get healthy in time" if code is None else f"ended with exit code {code}"
        lines = self.log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        return "\n".join([f"{self.title} {what}; its last lines ({self.log}):", *(f"    {line}" for line in lines)])

    def end(self) -> None:
        """End the whole tree; returns when it is gone."""
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait()


def free_port(host: str) -> int:
    """A port that nobody listens on at this address."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
