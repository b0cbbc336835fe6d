"""The commands inside a cluster: started by the head, told to stop, and started again with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matrix.cluster.folder import ClusterFolder
from matrix.cluster.states import Command, CommandPhase

INSIDE = "MATRIX_INSIDE"
"""Environment variable of a command inside a cluster: the cluster's folder."""
_BEAT_S = 3.0
_STOP_S = 60.0
"""A command that was asked to stop and doesn't is ended after so many seconds."""
_KILL_S = 10.0
_INTERRUPTED = (128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM)
# Where a process is, and what its shell or scheduler told it: not the command's business on another node.
_OF_THE_PLACE = ("SLURM_", "SBATCH_", "SRUN_", "SUBMITIT_", "RAY_", "HOSTNAME", "TMPDIR", "XDG_", "DISPLAY", "SSH_")


@dataclass
class _Running:
    command: Command
    process: subprocess.Popen[bytes]
    beat: float = 0.0
    asked: float | None = None


def inside() -> ClusterFolder | None:
    """The cluster that this process is a command of; None outside."""
    path = os.environ.get(INSIDE)
    return ClusterFolder(Path(path)) if path else None


class Commands:
    """The head's side.

    Args:
        folder: Of the cluster.
        environment: What Ray needs, and the mark of the head's processes.
        job: The head's job, for the commands to know.
        say: Told what happens.
    """

    def __init__(
        self, folder: ClusterFolder, environment: Mapping[str, str], job: str, say: Callable[[str], None]
    ) -> None:
        self._folder, self._environment, self._job, self._say = folder, environment, job, say
        self._running: dict[str, _Running] = {}
        self._then: CommandPhase | None = None
        for command in folder.commands():
            if command.phase == "running":
                # It was cut off with an earlier start of the head.
                self._note(replace(command, phase="requeued"))

    def look(self, *, starts: bool = True) -> None:
        """Start what waits if it may, note what has ended, stop what should."""
        for running in list(self._running.values()):
            self._look_at(running)
        for command in self._folder.commands() if starts else ():
            if command.phase in ("waiting", "requeued") and command.key not in self._running:
                self._start(command)

    def all_ended(self) -> bool:
        """Whether there were some, and all have ended."""
        commands = self._folder.commands()
        return bool(commands) and all(command.has_ended for command in commands)

    def end(self, timeout_s: float, then: CommandPhase) -> None:
        """Stop them all.

        Args:
            timeout_s: How long they may take.
            then: What those are that are cut off: `requeued` if the head will be started again, and they with it;
                `stopped` if that was asked for; else `lost`.
        """
        self._then = then
        deadline = time.monotonic() + timeout_s
        for running in self._running.values():
            running.asked = running.asked or time.monotonic()
            _signal(running.process, signal.SIGTERM)
        while self._running and time.monotonic() < deadline:
            for running in list(self._running.values()):
                self._look_at(running)
            time.sleep(0.1)
        for running in list(self._running.values()):
            _signal(running.process, signal.SIGKILL)
            running.process.wait()
            self._look_at(running)
        if then != "requeued":
            for command in self._folder.commands():
                if not command.has_ended:
                    self._finish(command, "lost", 1)

    def _start(self, command: Command) -> None:
        if self._folder.command_file(command.key, "stop").exists():
            self._finish(command, "stopped", 128 + signal.SIGINT)
            return
        try:
            given = json.loads(self._folder.command_file(command.key, "env").read_text())
        except (OSError, ValueError) as error:
            self._say(f"Command {command.key} can't be started: {error}")
            self._finish(command, "failed", 1)
            return
        environment = {
            **self._environment,
            **{key: value for key, value in given.items() if not key.startswith(_OF_THE_PLACE)},
            INSIDE: str(self._folder.path),
            "PYTHONUNBUFFERED": "1",
        }
        main = [sys.executable, "-P", "-c", "from matrix.cli import main; main()", *command.argv]
        if command.phase == "requeued":
            self._say(f"Command {command.key} goes on")
        with self._folder.command_file(command.key, "log").open("ab") as output:
            try:
                process = subprocess.Popen(
                    ["sh", "-c", 'trap "" USR1 USR2; exec "$@"', "sh", *main],
                    cwd=command.cwd,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                hint = "" if Path(command.cwd).is_dir() else ": commands are typed in a folder that nodes share"
                output.write(f"{command.cwd}: {error.strerror} on the head's node{hint}\n".encode())
                self._finish(command, "failed", 1)
                return
        now = replace(command, phase="running", pid=process.pid, starts=command.starts + 1)
        self._running[command.key] = _Running(now, process)
        self._note(now)

    def _look_at(self, running: _Running) -> None:
        command, now = running.command, time.monotonic()
        code = running.process.poll()
        if code is not None:
            self._ended(running, code)
            # Only now: on a full disk its end is written at a later look.
            del self._running[command.key]
            return
        if running.asked is None and self._folder.command_file(command.key, "stop").exists():
            running.asked = now
            _signal(running.process, signal.SIGINT)
        elif running.asked is not None and now - running.asked > _STOP_S + _KILL_S:
            _signal(running.process, signal.SIGKILL)
        elif running.asked is not None and now - running.asked > _STOP_S:
            _signal(running.process, signal.SIGTERM)
        if now - running.beat > _BEAT_S:
            running.beat = now
            replace(command, heartbeat=time.time()).beat(self._folder.command_file(command.key))

    def _ended(self, running: _Running, code: int) -> None:
        phase: CommandPhase = "succeeded" if code == 0 else "failed"
        if self._then == "requeued" and code != 0:
            self._note(replace(running.command, phase="requeued", pid=0))
            return
        if self._then == "lost" and code != 0:
            self._finish(running.command, "lost", 1)
            return
        if code in _INTERRUPTED:
            phase = "stopped"
        self._finish(running.command, phase, code if code >= 0 else 128 - code)

    def _finish(self, command: Command, phase: CommandPhase, code: int) -> None:
        self._say(f"Command {command.key}: {phase}, exit code {code}")
        self._note(replace(command, phase=phase, exit_code=code, pid=0))
        self._folder.command_file(command.key, "env").unlink(missing_ok=True)

    def _note(self, command: Command) -> None:
        replace(command, heartbeat=time.time()).write(self._folder.command_file(command.key))


def _signal(process: subprocess.Popen[Any], number: int) -> None:
    if process.poll() is None:
        os.kill(process.pid, number)
