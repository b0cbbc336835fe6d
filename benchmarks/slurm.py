"""A real Slurm of the benchmark's own (`tests/slurm/start_slurm.sh`), and a user of it who has nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).parent.parent
MATRIX = (sys.executable, "-c", "from matrix.cli import main; main()")
"""The `matrix` command of this checkout, also where another one is installed."""
RUN = (sys.executable, str(ROOT / "run.py"))
_POLL_S = 0.1


class Slurm:
    """Three nodes of 8 CPUs on this machine, for the `with` block. Whatever runs on a node ends with it.

    Attributes:
        home: Folder of the user: `MATRIX_DIR`, `TMPDIR`, where commands run.
    """

    def __init__(self) -> None:
        # Short: Unix sockets lie below it.
        self._folder = tempfile.TemporaryDirectory(prefix="mxb", dir="/tmp")
        self._base, self.home = Path(self._folder.name, "s"), Path(self._folder.name, "h")
        (self.home / "tmp").mkdir(parents=True)
        ours = {"SLURM_CONF": self._base / "slurm.conf", "MATRIX_DIR": self.home, "TMPDIR": self.home / "tmp"}
        self._ours = {**{name: str(path) for name, path in ours.items()}, "PYTHONPATH": str(ROOT)}

    def __enter__(self) -> Self:
        # What this process itself reads of the cluster is the user's, too.
        self._before = dict(os.environ)
        os.environ.update(self._ours)
        self._script("start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._script("stop")
        finally:
            os.environ.clear()
            os.environ.update(self._before)
            self._folder.cleanup()

    def command(self, *line: str) -> tuple[float, str]:
        """Run a command; returns the seconds from start to exit, and its stdout.

        Raises:
            SystemExit: It failed; with all that it said.
        """
        began = time.monotonic()
        done = subprocess.run(
            line, cwd=self.home, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        seconds = time.monotonic() - began
        if done.returncode:
            raise SystemExit(f"{' '.join(line)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return seconds, done.stdout

    def wait_until_empty(self) -> None:
        """Wait until Slurm has no job any more: what comes next finds its nodes free."""
        until(lambda: not self.command("squeue", "-h", "-o", "%i")[1], 120, "no job is left")

    def processes(self, node: str, word: str) -> list[int]:
        """Process ids, on this machine, of a node's processes whose command line has this word."""
        space = Path(f"/proc/{self._host(node)}/ns/pid").readlink()
        return [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if _is(entry, space, word)]

    def kill_node(self, node: str) -> None:
        """End all processes of a node at once, Slurm's own among them, and its network."""
        os.kill(self._host(node), signal.SIGKILL)

    def _host(self, node: str) -> int:
        return int((self._base / "hosts.d" / node / "pid").read_text())

    def _script(self, word: str) -> None:
        script = str(ROOT / "tests" / "slurm" / "start_slurm.sh")
        done = subprocess.run([script, word, str(self._base)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{script} {word}\n{done.stdout}{done.stderr}")


def until(found: Callable[[], object], limit_s: float, what: str) -> float:
    """Ask again and again until the answer is true; returns the seconds that it took.

    Raises:
        SystemExit: It wasn't within this time.
    """
    began = time.monotonic()
    while not found():
        if time.monotonic() - began > limit_s:
            raise SystemExit(f"not within {limit_s:g} s: {what}")
        time.sleep(_POLL_S)
    return time.monotonic() - began


def _is(entry: Path, space: Path, word: str) -> bool:
    try:
        return (entry / "ns/pid").readlink() == space and word.encode() in (entry / "cmdline").read_bytes()
    except OSError:
        return False
