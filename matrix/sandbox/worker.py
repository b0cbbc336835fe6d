"""A worker: an interpreter that waits in a sandbox, and runs one program at a time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import tempfile
from typing import Any

from matrix.errors import AppError
from matrix.sandbox import jail
from matrix.sandbox.cgroups import make_cgroup
from matrix.sandbox.filter import compiled
from matrix.spec.services import SandboxEngine

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
        ours, theirs = socket.socketpair()
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
        self.memory_mb: int | None = None
        self._kills = 0

    async def start(self) -> None:
        """Wait until it is ready.

        Raises:
            AppError: It ended instead, with its last words.
        """
        self._reader, self._writer = await asyncio.open_unix_connection(sock=self._ours, limit=1 << 20)
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

    async def run(self, asked: dict[str, Any], timeout_s: float) -> list[dict[str, Any] | None]:
        """Have a program run; one that is cancelled is ended.

        Args:
            asked: What `inside/zygote.py` takes.
            timeout_s: Seconds that it may take.

        Returns:
            What the supervisors of the program, and of its test, say; None for one that was ended itself.

        Raises:
            WorkerDiedError: So the worker did, and isn't usable any more.
        """
        if self._cgroup is not None:
            self._limit(asked["memory_mb"], programs=2 if "test" in asked else 1)
        asked["watch_memory"] = self._cgroup is None
        try:
            async with asyncio.timeout(timeout_s + _LATE_S):
                self._send(asked)
                answers: list[dict[str, Any] | None] = await self._receive()
        except TimeoutError:
            raise WorkerDiedError("the worker hangs") from None
        if self._cgroup is not None and (kills := self._cgroup.kills()) > self._kills:
            self._kills = kills
            for answer in answers:
                # Whatever the program made of it.
                if answer is not None and "broken" not in answer:
                    answer["why"] = answer["why"] or "memory"
        return answers

    def interrupt(self) -> None:
        """End the program that it runs."""
        self._send({})

    def end(self) -> None:
        """End it and all that is in it; returns when they are gone."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if hasattr(self, "_writer"):
            self._writer.close()
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

    def _limit(self, memory_mb: int, programs: int) -> None:
        wanted = _OWN_MB + programs * memory_mb
        if self.memory_mb != wanted and self._cgroup is not None:
            self._cgroup.limit(wanted << 20)
            self.memory_mb = wanted

    def _send(self, message: dict[str, Any]) -> None:
        body = json.dumps(message).encode()
        self._writer.write(struct.pack("!I", len(body)) + body)

    async def _receive(self) -> Any:
        try:
            (size,) = struct.unpack("!I", await self._reader.readexactly(4))
            return json.loads(await self._reader.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise WorkerDiedError("the worker is gone") from error

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it says nothing"
