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
from collections.abc import Sequence
from typing import Any

from matrix.errors import AppError
from matrix.sandbox import jail
from matrix.sandbox.cgroups import make_cgroup
from matrix.sandbox.filter import compiled
from matrix.spec.services import SandboxEngine

START_S = 60.0
"""Seconds until a worker that doesn't get ready is given up."""
_JUDGE_GRACE_S = 1.0
"""Seconds that the judge has longer than what it judges."""
_GRACE_S = 10.0
"""Seconds after a program's time limit after which its supervisor is believed to hang; taking away takes time."""
_LATE_S = 20.0
"""Seconds after the end of a program's time after which its worker is believed to hang."""
_OWN_MB = 64
"""Memory of the supervisors of a program and its judge, and what the interpreter may grow by."""
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
        # Before there is anything that would have to be taken away.
        jail.command(engine, [])
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
        self._own_mb = _OWN_MB
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
            "filter": compiled(network=self._engine.network, cgroup=self._cgroup is not None).hex(),
            "limits": {**_LIMITS, "RLIMIT_FSIZE": self._engine.disk_mb << 20},
        }
        try:
            async with asyncio.timeout(START_S):
                self._send(settings)
                ready: dict[str, Any] = await self._receive()
        except (TimeoutError, WorkerDiedError):
            raise AppError(f"The sandbox can't be set up on this machine: {self._last_words()}") from None
        if self._cgroup is not None:
            self._own_mb = _OWN_MB + (self._cgroup.used() >> 20)
        elif not ready["proc"]:
            raise AppError(
                "This machine can't isolate programs: their memory is limited by a cgroup or watched in a /proc of "
                "their own, and it allows neither. Nothing was run."
            )

    async def run(self, asked: dict[str, Any]) -> list[dict[str, Any] | None]:
        """Have a program run; one that is cancelled is ended.

        Args:
            asked: What `inside/supervisor.py` takes, and the `test` with what belongs to it.

        Returns:
            What the supervisors of the program, and of its test, say; None for one that was ended itself.

        Raises:
            WorkerDiedError: So the worker did, and isn't usable any more.
        """
        programs = _programs({**asked, "watch_memory": self._cgroup is None})
        self._limit(asked["memory_mb"], len(programs))
        timeout_s = programs[-1]["timeout"] + _GRACE_S
        files = [os.memfd_create(name) for _ in programs for name in ("asked", "answer")]
        try:
            for program, number in zip(programs, files[::2], strict=True):
                _write(number, json.dumps(program).encode())
            async with asyncio.timeout(timeout_s + _LATE_S):
                self._send({"programs": len(programs), "timeout": timeout_s}, files)
                answered: list[bool] = await self._receive()
            answers = [_read(number) if there else None for number, there in zip(files[1::2], answered, strict=True)]
        except TimeoutError:
            raise WorkerDiedError("the worker hangs") from None
        finally:
            for number in files:
                os.close(number)
        return self._with_memory(answers)

    def _with_memory(self, answers: list[dict[str, Any] | None]) -> list[dict[str, Any] | None]:
        """Have those that the kernel ended processes of say so, whatever they made of it."""
        if self._cgroup is None or (kills := self._cgroup.kills()) == self._kills:
            return answers
        self._kills = kills
        return [
            {"why": "memory"} if answer is None else {**answer, "why": answer.get("why") or "memory"}
            for answer in answers
        ]

    def interrupt(self) -> None:
        """End the program that it runs."""
        with contextlib.suppress(WorkerDiedError):
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
        wanted = self._own_mb + programs * memory_mb
        if self._cgroup is None or self.memory_mb == wanted:
            return
        try:
            self._cgroup.limit(wanted << 20)
        except OSError as error:
            raise WorkerDiedError(f"its cgroup takes no limit of {wanted} MB: {error}") from error
        self.memory_mb = wanted

    def _send(self, message: dict[str, Any], files: Sequence[int] = ()) -> None:
        # Few bytes, which the socket always has room for: the other side reads one message after another.
        body = json.dumps(message).encode()
        try:
            socket.send_fds(self._ours, [struct.pack("!I", len(body)) + body], files)
        except OSError as error:
            raise WorkerDiedError("the worker is gone") from error

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


def _programs(asked: dict[str, Any]) -> list[dict[str, Any]]:
    """What each supervisor gets: a program that is judged sees nothing of its test."""
    if "test" not in asked:
        return [asked]
    judging = {name: asked[name] for name in ("memory_mb", "output", "disk_mb", "limits", "watch_memory")}
    judging |= {"kind": "judge", "timeout": asked["timeout"] + _JUDGE_GRACE_S, **asked["test"]}
    return [{**{name: value for name, value in asked.items() if name != "test"}, "kind": "candidate"}, judging]


def _write(number: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(number, view) :]
    os.lseek(number, 0, os.SEEK_SET)


def _read(number: int) -> dict[str, Any]:
    """What a supervisor wrote."""
    with os.fdopen(os.dup(number), "rb") as file:
        file.seek(0)
        answer: dict[str, Any] = json.load(file)
    return answer
