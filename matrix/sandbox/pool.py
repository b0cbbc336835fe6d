"""The workers of a sandbox: who gets one next, and what takes the place of one that died."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections import deque
from pathlib import PurePosixPath
from typing import Any

from matrix.errors import AppError
from matrix.sandbox import jail
from matrix.sandbox.execution import Executed, Execution
from matrix.sandbox.outcome import outcome
from matrix.sandbox.worker import Worker, WorkerDiedError
from matrix.spec.services import SandboxEngine

_LOG = logging.getLogger(__name__)
MAIN = r"\bmain\.\w+"
"""In the command of a language: the file that its code is written to."""
_CLOSED = "the sandbox has been closed"
_TRIES = 2
"""Workers that a program may take along."""
_PAUSE_S = 1.0
"""Before a worker is started again that could not be."""


class SandboxBusyError(Exception):
    """Too many programs wait already."""


class RefusedError(ValueError):
    """A program that can't be run as it is asked for; the message names the field."""


class Sandbox:
    """Runs programs that nobody trusts; on one event loop.

    Args:
        engine: What programs get.

    Attributes:
        waiting: Programs that wait for a worker.
        running: Those that are run.
    """

    def __init__(self, engine: SandboxEngine) -> None:
        self._engine = engine
        self._size = engine.workers or max(1, round(engine.cpus))
        self._idle: list[Worker] = []
        self._all: set[Worker] = set()
        self._buried: set[Worker] = set()
        self._queue: deque[asyncio.Future[Worker]] = deque()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False
        self._trouble: str | None = None
        self.running = 0

    @property
    def waiting(self) -> int:
        """Programs that wait for a worker."""
        return len(self._queue)

    async def start(self) -> None:
        """Start all workers.

        Raises:
            AppError: This machine can't isolate programs; with what it lacks.
        """
        jail.check_host()
        try:
            await asyncio.gather(*(self._add() for _ in range(self._size)))
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """End all programs and workers; returns when they are gone."""
        self._closed = True
        for turn in self._queue:
            if not turn.done():
                turn.set_exception(SandboxBusyError(_CLOSED))
        self._queue.clear()
        for task in self._tasks:
            task.cancel()
        for worker in self._all:
            worker.end()
        ended = [*self._all, *self._buried]
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(worker.removed() for worker in ended))
        self._all.clear()
        self._idle.clear()

    def problem(self) -> str | None:
        """Why no program can be run; None if one can."""
        return None if self._all else self._trouble

    async def execute(self, execution: Execution) -> Executed:
        """Run a program, when its turn has come; one that is cancelled is ended.

        Raises:
            RefusedError: It can't be run as it is asked for.
            SandboxBusyError: `engine.max_queue` programs wait already.
        """
        asked = self._asked(execution)
        began = time.perf_counter()
        queue_s: float | None = None
        for _ in range(_TRIES):
            worker = await self._take()
            if queue_s is None:
                queue_s = time.perf_counter() - began
            # A task of its own: the worker is used again only when it is done with the program.
            run = asyncio.get_running_loop().create_task(self._run(worker, asked))
            self._tasks.add(run)
            run.add_done_callback(self._tasks.discard)
            try:
                answers = await asyncio.shield(run)
            except WorkerDiedError:
                continue
            except asyncio.CancelledError:
                # Once it is done the worker may have another's.
                if not run.done():
                    worker.interrupt()
                if self._closed:
                    raise SandboxBusyError(_CLOSED) from None
                raise
            return outcome(execution, answers).model_copy(update={"queue_s": queue_s})
        return outcome(execution, [None, None]).model_copy(update={"queue_s": queue_s or 0.0})

    async def _run(self, worker: Worker, asked: dict[str, Any]) -> list[dict[str, Any] | None]:
        self.running += 1
        try:
            answers = await worker.run(asked)
        except BaseException:
            self._bury(worker)
            raise
        finally:
            self.running -= 1
        self._give(worker)
        return answers

    async def _take(self) -> Worker:
        if self._closed:
            raise SandboxBusyError(_CLOSED)
        if self._idle:
            return self._idle.pop()
        if len(self._queue) >= self._engine.max_queue:
            raise SandboxBusyError(f"{len(self._queue)} programs wait already (engine.max_queue)")
        turn: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._give(turn.result())
            else:
                with contextlib.suppress(ValueError):
                    self._queue.remove(turn)
            raise

    def _give(self, worker: Worker) -> None:
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(worker)
                return
        self._idle.append(worker)

    async def _add(self) -> None:
        worker = Worker(self._engine)
        self._all.add(worker)
        try:
            await worker.start()
        except BaseException:
            self._all.discard(worker)
            worker.end()
            await worker.removed()
            raise
        self._give(worker)

    def _bury(self, worker: Worker) -> None:
        """Another one takes the place of a worker that died."""
        self._all.discard(worker)
        self._buried.add(worker)
        worker.end()
        if self._closed:
            return
        task = asyncio.get_running_loop().create_task(self._replace(worker))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _replace(self, worker: Worker) -> None:
        await worker.removed()
        self._buried.discard(worker)
        _LOG.warning("A worker of the sandbox died; another one takes its place")
        while not self._closed:
            try:
                await self._add()
            except AppError as error:
                self._trouble = str(error)
                _LOG.error("%s", error)
                await asyncio.sleep(_PAUSE_S)
            else:
                return

    def _asked(self, execution: Execution) -> dict[str, Any]:
        """What a worker takes for it."""
        engine = self._engine
        timeout_s = self._limited("timeout", execution.timeout, engine.timeout_s, engine.max_timeout_s)
        memory_mb = self._limited("memory", execution.memory, engine.memory_mb, engine.max_memory_mb)
        for name in execution.files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\0" in name or not path.name:
                raise RefusedError(f"files: {name!r} is no path in the program's folder")
        paths = {PurePosixPath(name) for name in execution.files}
        if both := next((path for path in paths if paths & set(path.parents)), None):
            raise RefusedError(f"files: {str(both)!r} lies in what is a file itself")
        if any("\0" in text for text in execution.args):
            raise RefusedError("args: an argument can't hold the character 0")
        program = self._program(execution)
        if taken := program.get("main", {}).keys() & execution.files.keys():
            raise RefusedError(f"files: {min(taken)!r} is what the code is written to")
        limits = {"RLIMIT_NPROC": engine.processes, "RLIMIT_CPU": int(timeout_s) + 2}
        asked: dict[str, Any] = {
            "timeout": timeout_s,
            "memory_mb": int(memory_mb),
            "disk_mb": engine.disk_mb,
            "output": engine.output_kb << 10,
            "limits": limits,
            "args": execution.args,
            "stdin": execution.stdin,
            "outputs": execution.outputs,
            "files": execution.model_dump(include={"files"})["files"],
            **program,
        }
        return asked

    def _program(self, execution: Execution) -> dict[str, Any]:
        command = self._engine.languages.get(execution.language)
        if command is None:
            known = ", ".join(self._engine.languages)
            raise RefusedError(f"language: {execution.language!r} is none of {known} (engine.languages)")
        if command == "python":
            if execution.test is None:
                return {"kind": "python", "main": {"main.py": execution.code}}
            test = {name: getattr(execution, name) for name in ("test", "entry_point", "prelude")}
            return {"kind": "candidate", "code": execution.code, "test": test}
        if execution.test is not None:
            raise RefusedError(f"test: only Python programs can be judged, not {execution.language}")
        main = re.search(MAIN, command)
        return {"kind": "command", "command": f'{command} "$@"', "main": {main[0]: execution.code} if main else {}}

    def _limited(self, name: str, given: float | None, default: float, most: float) -> float:
        if given is not None and given > most:
            setting = {"timeout": "max_timeout_s", "memory": "max_memory_mb"}[name]
            raise RefusedError(f"{name}={given:g} is more than engine.{setting}={most:g}")
        return default if given is None else given
