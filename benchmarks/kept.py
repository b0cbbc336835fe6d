"""A cluster of the benchmark's own, which `matrix deploy_applications` starts and keeps, and what runs on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parent.parent
MATRIX = (sys.executable, "-c", "from matrix.cli import main; main()")
"""The `matrix` command of this checkout, also where another one is installed."""
_LOOK_UP = (
    "import json, sys, matrix; found = matrix.Cli().get_app_metadata(sys.argv[1]); found['endpoints'].pop('updater')"
)


class Kept:
    """The commands of a user with a cluster of their own, which is stopped at the end of the `with` block."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.env = {**os.environ, "MATRIX_DIR": self._folder.name, "PYTHONPATH": str(ROOT)}

    def command(self, *arguments: str, on_line: Callable[[str], None] = lambda _: None) -> float:
        """Run `matrix` with these arguments; returns the seconds that it took, start to exit.

        Args:
            arguments: Of the command.
            on_line: Told each line as it appears.

        Raises:
            SystemExit: It failed; with all that it said.
        """
        began = time.monotonic()
        process = subprocess.Popen(
            [*MATRIX, *arguments],
            cwd=ROOT,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        said = []
        try:
            for line in process.stdout:
                said.append(line)
                on_line(line)
        except BaseException:
            process.terminate()
            raise
        finally:
            code = process.wait()
        if code:
            raise SystemExit(f"matrix {' '.join(arguments)}\n{''.join(said)}")
        return time.monotonic() - began

    def deploy(self, *overrides: str) -> float:
        """Run `matrix deploy_applications` with these arguments; returns seconds, start to exit."""
        return self.command("deploy_applications", *overrides)

    def metadata(self, app: str) -> dict[str, Any]:
        """What `matrix.Cli.get_app_metadata` says of an app, asked for by a process of its own."""
        command = [sys.executable, "-c", f"{_LOOK_UP}; print(json.dumps(found))", app]
        done = subprocess.run(command, cwd=ROOT, env=self.env, check=True, capture_output=True, text=True)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    def stop(self) -> float:
        """Stop the cluster with all its apps; returns the seconds that took."""
        return self.command("stop_cluster")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if Path(self._folder.name, "clusters", "local", "cluster.json").exists():
            self.stop()
        self._folder.cleanup()


def pid_at(url: str) -> int:
    """Process id of the server that was started for a URL of this machine: the one with its port as an argument."""
    port = url.split("/")[2].split(":")[1]
    for entry in Path("/proc").iterdir():
        words = _command_line(entry) if entry.name.isdigit() else []
        if "--port" in words and port in words and "matrix.apps.guard" not in words:
            return int(entry.name)
    raise SystemExit(f"no process has the port of {url} as an argument")


def server_below(guard: int) -> int:
    """Process id of what a guard, which is two processes, runs."""
    pid = guard
    while "matrix.apps.guard" in _command_line(Path(f"/proc/{pid}")):
        pid = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
    return pid


def cpu_s(pids: Sequence[int]) -> float:
    """CPU seconds that these processes used so far, system included (proc(5), /proc/PID/stat)."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(each[11]) + int(each[12]) for each in fields) / os.sysconf("SC_CLK_TCK")


def _command_line(entry: Path) -> list[str]:
    try:
        return (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []
