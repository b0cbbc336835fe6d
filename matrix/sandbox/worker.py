"""A worker: an interpreter that waits in a sandbox, and runs one program at a time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from matrix.errors import AppError
from matrix.sandbox import jail
from matrix.sandbox.cgroups import make_cgroup
from matrix.sandbox.filter import compiled
from matrix.spec.services import SandboxEngine

Json = dict[str, Any]

START_S = 60.0
"""Seconds until a worker that doesn't get ready is given up."""
_LATE_S = 10.0
"""Seconds after the end of a program's time after which its worker is believed to hang."""
_OWN_MB = 64
"""Memory of a worker itself: the interpreter, and the supervisor of a program."""
_OWN_PROCESSES = 8
_LIMITS = {"RLIMIT_CORE": 0, "RLIMIT_NOFILE": 1024, "RLIMIT_MEMLOCK": 0, "RLIMIT_MSGQUEUE": 0}


class WorkerDiedError(Exception):
    """The worker ended while it had a program."""


class Worker:
    """One worker. Make it with `start`.

    Attributes:
        memory_mb: What its cgroup is set to; None without one.
    """

    def __init__(self, engine: SandboxEngine) -> None:
        self._engine = engine
        self._cgroup = make_cgroup(2 * engine.processes + _OWN_PROCESSES)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        entrances = self._cgroup.entrances() if self._cgroup else []
        self._process = subprocess.Popen(
            jail.command(engine, entrances),
            stdin=theirs.fileno(),
            stdout=self._log,
            stderr=self._log,
            env={"PATH": os.environ.get("PATH", "/usr/bin:/bin")},
            start_new_session=True,
        )
        theirs.close()
        self._ours = ours
        ours.setblocking(False)
        self.memory_mb: int | None = None
        self._kills = 0

    async def start(self) -> None:
        """Wait until it is ready.

        Raises:
            AppError: It ended instead, with its last words.
        """
        settings = {
            "preload": self._engine.preload,
            "filter": compiled().hex(),
            "limits": {**_LIMITS, "RLIMIT_FSIZE": self._engine.disk_mb << 20},
        }
        try:
            async with asyncio.timeout(START_S):
                self._send(settings)
                await self._receive()
        except (TimeoutError, WorkerDiedError):
            raise AppError(f"The sandbox can't be set up on this machine: {self._last_words()}") from None

    async def run(self, programs: Sequence[Json], timeout_s: float) -> list[Json | None]:
        """Have a program run, or one and what judges it; both are ended if this is cancelled, or by `interrupt`.

        Args:
            programs: What `inside/supervisor.py` takes.
            timeout_s: Seconds that they may take.

        Returns:
            What their supervisors say; None for one that was ended itself.

        Raises:
            WorkerDiedError: So the worker did, and isn't usable any more.
        """
        self._limit(sum(program["memory_mb"] for program in programs))
        with ExitStack() as opened:
            answers = []
            descriptors = []
            for program in programs:
                request = _file(opened, {**program, "watch_memory": self._cgroup is None})
                answers.append(_file(opened))
                descriptors += [request, answers[-1]]
            try:
                async with asyncio.timeout(timeout_s + _LATE_S):
                    self._send({"timeout": timeout_s}, descriptors)
                    await self._receive()
            except TimeoutError:
                raise WorkerDiedError("the worker hangs") from None
            return self._told([_content(answer) for answer in answers])

    def interrupt(self) -> None:
        """End the programs that it runs."""
        # It may have died meanwhile.
        with contextlib.suppress(WorkerDiedError):
            self._send({})

    def end(self) -> None:
        """End it and all that is in it; returns when they are gone."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._ours.close()
        self._log.close()

    async def removed(self) -> None:
        """Take its cgroup away, once the kernel has let go of its last process."""
        if self._cgroup is None:
            return
        for _ in range(200):
            try:
                self._cgroup.remove()
            except OSError:
                await asyncio.sleep(0.02)
            else:
                return

    def _limit(self, programs_mb: int) -> None:
        wanted = _OWN_MB + programs_mb
        if self._cgroup is not None and self.memory_mb != wanted:
            self._cgroup.limit(wanted << 20)
            self.memory_mb = wanted

    def _told(self, answers: list[Json | None]) -> list[Json | None]:
        """The answers, with what the kernel ended for want of memory, whatever the programs made of that."""
        if self._cgroup is not None and (kills := self._cgroup.kills()) > self._kills:
            self._kills = kills
            for answer in answers:
                if answer is not None and "broken" not in answer:
                    answer["why"] = answer["why"] or "memory"
        return answers

    def _send(self, message: Json, descriptors: Sequence[int] = ()) -> None:
        try:
            socket.send_fds(self._ours, [json.dumps(message).encode()], descriptors)
        except OSError as error:
            raise WorkerDiedError("the worker is gone") from error

    async def _receive(self) -> None:
        try:
            message = await asyncio.get_running_loop().sock_recv(self._ours, 64)
        except OSError as error:
            raise WorkerDiedError("the worker is gone") from error
        if not message:
            raise WorkerDiedError("the worker is gone")

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it says nothing"


def _file(opened: ExitStack, content: Json | None = None) -> int:
    """A file in memory that nobody has a name for."""
    number = os.memfd_create("matrix")
    opened.callback(os.close, number)
    if content is not None:
        with os.fdopen(os.dup(number), "wb") as file:
            file.write(json.dumps(content).encode())
    return number


def _content(file: int) -> Json | None:
    """What a supervisor wrote; None if it didn't come to its end."""
    try:
        content: Json = json.loads(os.pread(file, os.fstat(file).st_size, 0))
    except ValueError:
        return None
    return content
