"""A command inside a cluster as the terminal sees it: handed over, followed, told to stop, left and found again."""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from matrix.cluster import jobs
from matrix.cluster.folder import ClusterFolder
from matrix.cluster.states import Command, write
from matrix.cluster.waiting import Asking, LiveLine, last_lines, waits_for
from matrix.errors import ClusterError

_LOOK_S = 0.2
_ASK_S = 5.0
_QUIET_S = 8.0
"""Slurm is asked about a head that has written nothing for so long."""
_CHUNK = 1 << 16
_STOPPED = 130


def submit(folder: ClusterFolder, argv: Sequence[str], run_dir: str = "") -> str:
    """Hand a command over to the cluster; returns its key. The caller holds the lock.

    It gets this process's environment, which is kept in a file that only the user can read until it has ended.
    """
    key = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    write(folder.command_file(key, "env"), json.dumps(dict(os.environ)), 0o600)
    command = Command(key, "waiting", tuple(argv), str(Path.cwd()), run_dir, submitted=time.time())
    command.write(folder.command_file(key))
    return key


def withdraw(folder: ClusterFolder, key: str) -> bool:
    """Take a command back that hasn't started; whether it hadn't."""
    with folder.lock():
        command = read(folder, key)
        if command.phase != "waiting":
            return False
        replace(command, phase="stopped", exit_code=_STOPPED).write(folder.command_file(key))
        folder.command_file(key, "env").unlink(missing_ok=True)
        return True


def follow(folder: ClusterFolder, key: str, live: LiveLine) -> int:
    """Show a command's output until it has ended; returns its exit code.

    Ctrl-C asks it to stop, and takes it back if it hasn't started; a second one doesn't wait for its end.
    """
    followed = _Followed(folder, key, live)
    while True:
        try:
            return followed.follow()
        except KeyboardInterrupt:
            if followed.asked_to_stop:
                live.say(f"\nIt stops by itself. See it again: matrix attach {key}")
                return _STOPPED
            if withdraw(folder, key):
                live.say("\nTaken back before it had started.")
                return _STOPPED
            followed.ask_to_stop()
            live.say("\nAsked it to stop; its rows are kept. Ctrl-C again doesn't wait for its end.")


class _Followed:
    def __init__(self, folder: ClusterFolder, key: str, live: LiveLine) -> None:
        self._folder, self._key, self._live = folder, key, live
        self._log, self._shown = folder.command_file(key, "log"), 0
        self._asked_at, self._phase = time.monotonic(), ""
        self._asking = Asking(folder.cluster().executor)

    @property
    def asked_to_stop(self) -> bool:
        return self._folder.command_file(self._key, "stop").exists()

    def ask_to_stop(self) -> None:
        self._folder.command_file(self._key, "stop").touch()

    def follow(self) -> int:
        while True:
            # Read before the output: what it wrote before its end is then all there.
            command = read(self._folder, self._key)
            self._show_output()
            if command.has_ended:
                return self._ended(command)
            if command.phase == "waiting":
                self._live.show(waits_for(self._folder, self._asking))
            elif command.phase != self._phase and command.phase == "requeued":
                self._live.say("The head had to go before the command had ended: it goes on when Slurm starts it again")
            self._phase = command.phase
            if time.monotonic() - self._asked_at > _ASK_S:
                self._asked_at = time.monotonic()
                self._refuse_lost()
            time.sleep(_LOOK_S)

    def _ended(self, command: Command) -> int:
        if command.phase == "lost":
            job, head = self._folder.cluster().head_job, self._folder.head()
            why = f": {head.detail}" if head is not None and head.detail else ""
            said = f"The head (job {job}) ended before the command did{why}{last_lines(self._folder, job)}"
            self._live.say(f"{said}{_resume(command)}")
        return 1 if command.exit_code is None else command.exit_code

    def _show_output(self) -> None:
        try:
            with self._log.open("rb") as log:
                log.seek(self._shown)
                while chunk := log.read(_CHUNK):
                    self._shown += len(chunk)
                    sys.stdout.buffer.write(chunk)
        except FileNotFoundError:
            return
        sys.stdout.flush()

    def _refuse_lost(self) -> None:
        """Mark a command as lost whose head is gone for good."""
        head = self._folder.head()
        if head is not None and time.time() - head.heartbeat < _QUIET_S and head.phase != "failed":
            return
        try:
            job = self._folder.cluster().head_job
            if jobs.living(self._folder.cluster().executor, [job]):
                return
        except ClusterError as error:
            self._live.say(f"The head can't be asked about: {str(error).splitlines()[0]}")
            return
        with self._folder.lock():
            now = read(self._folder, self._key)
            if now.has_ended:
                return
            replace(now, phase="lost", exit_code=1).write(self._folder.command_file(self._key))
            self._folder.command_file(self._key, "env").unlink(missing_ok=True)


def read(folder: ClusterFolder, key: str) -> Command:
    """How far a command is.

    Raises:
        ClusterError: There is none of that key.
    """
    command = Command.read(folder.command_file(key))
    if command is None:
        raise ClusterError(f"{key}: no such command in cluster {folder.cluster().id}")
    return command


def find_command(folders: Sequence[ClusterFolder], name: str) -> tuple[ClusterFolder, Command]:
    """A command by its key, or the last one that writes to a run dir or sweep.

    Raises:
        ClusterError: There is none.
    """
    wanted = str(Path(name).expanduser().absolute())
    found = [
        (folder, command)
        for folder in folders
        for command in folder.commands()
        if command.key == name or (command.run_dir and command.run_dir in (wanted, str(Path(wanted).parent)))
    ]
    if not found:
        keys = [command.key for folder in folders for command in folder.commands()][-5:]
        known = f"the last ones: {', '.join(keys)}" if keys else "none runs inside a cluster"
        raise ClusterError(f"{name}: no such run ({known})")
    return max(found, key=lambda one: one[1].submitted)


def _resume(command: Command) -> str:
    if not command.run_dir or not command.starts:
        return ""
    return f"\nIts rows are kept in {command.run_dir}; start it again with that run dir to resume it."
