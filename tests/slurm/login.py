"""A user on Slurm's login node: the commands, in a place of their own, and what is left of them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self, TypeVar

from tests.command import command, environment
from tests.slurm.machine import NODES, Slurm, all_processes, mentions

T = TypeVar("T")

PATIENCE = 3
"""How much longer a command is waited for than a quiet machine needs: only one that hangs is meant to be given up."""

MATRIX = (sys.executable, "-c", "from matrix.cli import main; main()")


class Login:
    """One user, whose jobs inherit the environment: all temporary files lie in the place.

    Args:
        slurm: The Slurm.
        place: Folder that is theirs alone, with a short path: Unix sockets lie below it.

    Attributes:
        matrix_dir: Takes the place of `~/.matrix`.
        tmp: TMPDIR.
        cwd: Where commands run.
        env: Their environment.
    """

    def __init__(self, slurm: Slurm, place: Path) -> None:
        self.slurm = slurm
        self.place = place
        self.matrix_dir, self.tmp, self.cwd = place / "m", place / "t", place / "w"
        for folder in (self.matrix_dir, self.tmp, self.cwd):
            folder.mkdir()
        # Of a job that these tests run in themselves.
        kept = {key: value for key, value in environment().items() if not key.startswith(("SLURM_", "SBATCH_"))}
        ours = {"SLURM_CONF": slurm.conf, "MATRIX_DIR": self.matrix_dir, "TMPDIR": self.tmp}
        self.env = {**kept, **{key: str(value) for key, value in ours.items()}}
        self._started: list[subprocess.Popen[str]] = []

    @classmethod
    @contextmanager
    def until_the_end(cls, slurm: Slurm) -> Iterator[Self]:
        """A user who leaves nothing: their clusters are stopped in the end."""
        login = cls(slurm, Path(tempfile.mkdtemp(prefix="mx", dir="/tmp")))
        try:
            yield login
        finally:
            try:
                login._end()
            finally:
                login._kill()
                shutil.rmtree(login.place, ignore_errors=True)

    def matrix(self, *arguments: str, code: int = 0, timeout_s: float = 180) -> subprocess.CompletedProcess[str]:
        """Run a command of `matrix` to its end, which has to be this exit code."""
        return self.command(*MATRIX, *arguments, code=code, timeout_s=timeout_s)

    def run(self, *overrides: str, code: int = 0, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        """Run an experiment (`run.py`) to its end."""
        return self.command(*command(*overrides), code=code, timeout_s=timeout_s)

    def command(self, *line: str, code: int | None = 0, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Run any command to its end, which has to be this exit code; None: any."""
        done = subprocess.run(
            line, cwd=self.cwd, env=self.env, capture_output=True, text=True, timeout=PATIENCE * timeout_s, check=False
        )
        if code is not None:
            assert done.returncode == code, f"{line}: {done.returncode}\n{done.stdout}\n{done.stderr}\n{self.told()}"
        return done

    def start(self, *line: str) -> subprocess.Popen[str]:
        """Start a command in the background, such as `*MATRIX, "status"`; `said` has its output.

        It has a session of its own: a signal to `process.pid` as a group reaches it as Ctrl-C does.
        """
        with self._output(len(self._started)).open("w") as output:
            process = subprocess.Popen(
                line, cwd=self.cwd, env=self.env, stdout=output, stderr=subprocess.STDOUT, text=True,
                start_new_session=True,
            )  # fmt: skip
        self._started.append(process)
        return process

    def said(self, process: subprocess.Popen[str]) -> str:
        """What a command in the background has printed so far."""
        return self._output(self._started.index(process)).read_text(errors="replace")

    def start_run(self, *overrides: str) -> subprocess.Popen[str]:
        """Start an experiment (`run.py`) in the background."""
        return self.start(*command(*overrides))

    def squeue(self) -> list[dict[str, str]]:
        """Jobs that are pending, running or ending, each task of an array by itself: id, state, reason, node, name."""
        names = ("id", "state", "reason", "node", "name")
        lines = self.command("squeue", "--all", "--noheader", "--array", "--format=%i|%T|%r|%N|%j").stdout.splitlines()
        return [dict(zip(names, line.split("|"), strict=True)) for line in lines]

    def job(self, job_id: str) -> dict[str, str]:
        """The job, as squeue has it; empty if it has ended."""
        return next((job for job in self.squeue() if job["id"] == job_id), {})

    def wait_for(self, found: Callable[[], T], timeout_s: float, what: str) -> T:
        """Ask again and again until the answer is true.

        Raises:
            AssertionError: It wasn't within this time; the message has the queue and the logs.
        """
        deadline = time.monotonic() + timeout_s
        while not (answer := found()):
            assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}\n{self.told()}"
            time.sleep(0.2)
        return answer

    def told(self) -> str:
        """What there is to know when something went wrong: the queue and the ends of the clusters' logs."""
        queue = subprocess.run(["squeue", "--all"], env=self.env, capture_output=True, text=True, check=False)
        logs = sorted(path for path in self.matrix_dir.rglob("*") if path.suffix in {".log", ".out", ".err"})
        ends = [f"--- {path}\n{path.read_text(errors='replace')[-3000:]}" for path in logs if path.is_file()]
        return "\n".join([queue.stdout + queue.stderr, *ends])

    def processes(self) -> dict[int, str]:
        """Command lines of this user's processes, here and on all nodes, by their process ids here."""
        return {pid: line for pid, line in all_processes().items() if mentions(pid, str(self.place))}

    def leftovers(self) -> list[str]:
        """What is left of this user's doings, a line for each."""
        left = [f"job {job['id']} {job['state']} {job['name']}" for job in self.squeue()]
        left += [f"process {pid} {line[:300]}" for pid, line in self.processes().items()]
        left += [f"port {port} on {node}" for node in NODES for port in sorted(self.slurm.listening(node))]
        left += [f"file {path}" for path in sorted(self.tmp.rglob("*"))]
        left += [f"token {path}" for path in sorted(self.matrix_dir.rglob("token"))]
        return left

    def _end(self) -> None:
        for process in self._started:
            _end(process)
        for current in sorted(self.matrix_dir.glob("clusters/*/current")):
            done = self.command(*MATRIX, "stop_cluster", f"cluster.id={current.parent.name}", code=None, timeout_s=180)
            # 1: it has just ended by itself.
            assert done.returncode in {0, 1}, f"{done.stdout}\n{done.stderr}\n{self.told()}"
        if jobs := {job["id"] for job in self.squeue()}:
            self.command("scancel", *jobs)
        self.wait_for(lambda: not self.squeue(), 60, "no job is left")
        # The kernel needs a moment after squeue's last word.
        deadline = time.monotonic() + 10
        while (left := self.leftovers()) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not left, "\n".join(["left behind:", *left])

    def _kill(self) -> None:
        """The next test shall not find what this one left."""
        self.command("scancel", "--user=root", code=None)
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _output(self, number: int) -> Path:
        return self.place / f"output{number}"


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
