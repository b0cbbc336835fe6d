"""A peer's way to the processes of a role."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from matrix.agents.actors import UNDER_WAY, Message, Reply, to_message
from matrix.agents.said import RoleBrokenError, RoleDiedError, RoleRaisedError
from matrix.agents.state import State, Turn
from matrix.data.rows import RowError, Score

_LOG = logging.getLogger(__name__)
_AGAIN_S = 0.5
_NOTICE_S = 10.0
"""What it may take on a busy machine until it is known that a process has died."""
_SAY_S = 10.0


class ActorPool:
    """A peer's way to the processes of a role.

    A process that dies may have died of any turn that it had, of this peer's or of another's: each of them is then
    tried by itself, in a process that it has claimed for itself, until it is known whose fault it is.

    Args:
        name: The role's name.
        actors: Handles of its processes.
        batch: Turns that go together at most.
        max_attempts: Times that a process may die of a turn.
        timeout_s: Seconds that a turn may take; what a process dies of after twice that has kept it busy all the time.
    """

    def __init__(self, name: str, actors: list[Any], batch: int, max_attempts: int, timeout_s: float) -> None:
        self._name, self._batch, self._max_attempts, self._timeout_s = name, batch, max_attempts, timeout_s
        self._processes = [_Process(actor, number) for number, actor in enumerate(actors)]
        self._queue: deque[_Waiting] = deque()
        self._suspects: deque[_Waiting] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._broken: RoleBrokenError | None = None

    async def open(self) -> None:
        """Begin to wait for the processes."""
        for process in self._processes:
            self._start(self._until_up(process))

    async def act(self, state: State, tools: Any) -> Turn | None:
        """One turn, as `Act` has it; as a whole a step of the row.

        Raises:
            RoleRaisedError: The role raised an exception.
            RoleDiedError: Its process died of this turn `max_attempts` times.
            RoleBrokenError: A process of it can't be started.
        """
        reply = await tools.whole_turn(lambda: self._ask(state, tools.large))
        state.scratch = reply["scratch"]
        state.metrics.update(reply["metrics"])
        state.scores.update({label: Score(**score) for label, score in reply["scores"].items()})
        return Turn(**reply["turn"]) if reply["turn"] is not None else None

    async def close(self) -> None:
        """Drop what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _ask(self, state: State, large: dict[Any, Any]) -> Reply:
        if self._broken is not None:
            raise self._broken
        loop = asyncio.get_running_loop()
        waiting = _Waiting(to_message(state, large), loop.create_future())
        self._queue.append(waiting)
        # Whoever else asks in this round of the loop goes along in the same batch.
        loop.call_soon(self._send)
        reply = await waiting.reply
        if reply["error"] is not None:
            raise RoleRaisedError(RowError(**reply["error"]))
        return reply

    def _send(self) -> None:
        """Give work to the processes that have room for it."""
        for process in sorted(self._processes, key=lambda one: one.under_way):
            if process.is_up and not process.is_claimed and (suspect := _next(self._suspects)):
                process.is_claimed = True
                self._start(self._try_alone(process, suspect))
            while process.is_up and process.under_way < UNDER_WAY and (first := _next(self._queue)):
                batch = [first]
                while len(batch) < self._batch and (waiting := _next(self._queue)):
                    batch.append(waiting)
                process.under_way += 1
                self._start(self._try(process, batch))

    async def _try(self, process: _Process, batch: list[_Waiting]) -> None:
        import ray

        try:
            replies = await process.actor.act.remote([waiting.message for waiting in batch])
        except ray.exceptions.RayActorError as error:
            self._suspects.extend(batch)
            self._is_down(process, error)
        except Exception as error:  # noqa: BLE001 - one of them can't be sent, or not be read there
            for waiting in batch:
                self._suspects.append(waiting) if len(batch) > 1 else waiting.fail(error)
        else:
            for waiting, reply in zip(batch, replies, strict=True):
                if reply is None:
                    self._suspects.append(waiting)
                elif not waiting.reply.done():
                    waiting.reply.set_result(reply)
        finally:
            process.under_way -= 1
            self._send()

    async def _try_alone(self, process: _Process, suspect: _Waiting) -> None:
        import ray

        began = 0.0
        try:
            await process.actor.claim.remote()
            began = time.monotonic()
            (reply,) = await process.actor.act.remote([suspect.message], alone=True)
        except ray.exceptions.RayActorError as error:
            self._accuse(suspect, began, error)
            self._is_down(process, error)
        except Exception as error:  # noqa: BLE001 - it can't be sent, or not be read there
            suspect.fail(error)
        else:
            if not suspect.reply.done():
                suspect.reply.set_result(reply)
        finally:
            process.is_claimed = False
            self._send()

    def _accuse(self, suspect: _Waiting, began: float, error: Exception) -> None:
        # Without a claim it wasn't in the process.
        suspect.deaths += bool(began)
        took_s = time.monotonic() - began if began else 0.0
        if suspect.deaths >= self._max_attempts or took_s > 2 * self._timeout_s + _NOTICE_S:
            _LOG.debug("%s: %s", self._name, error)
            suspect.fail(RoleDiedError(f"its process died {suspect.deaths} times of this turn"))
        else:
            self._suspects.append(suspect)

    def _is_down(self, process: _Process, error: Any) -> None:
        if error.actor_init_failed:
            self._break(error)
        elif process.is_up:
            process.is_up = False
            self._start(self._until_up(process))

    def _break(self, error: Exception) -> None:
        # The error itself, without the way that it took through Ray.
        why = str(error).strip().splitlines()[-1].strip()
        self._broken = RoleBrokenError(f"{self._name}: a process of it can't be started: {why}")
        while waiting := _next(self._queue) or _next(self._suspects):
            waiting.fail(self._broken)

    async def _until_up(self, process: _Process) -> None:
        """Wait for Ray to start the process, so that the next death is a turn's own."""
        import ray

        what = f"process {process.number} of role {self._name}"
        while not process.is_up and self._broken is None:
            try:
                await told_if_long(process.actor.ping.remote(), what)
            except ray.exceptions.RayActorError as error:
                if error.actor_init_failed:
                    self._break(error)
                await asyncio.sleep(_AGAIN_S)
            else:
                process.is_up = True
        self._send()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@dataclass(slots=True, eq=False)
class _Process:
    """One of the processes, as a peer knows it."""

    actor: Any
    number: int
    under_way: int = 0
    is_claimed: bool = False
    is_up: bool = False


@dataclass(slots=True, eq=False)
class _Waiting:
    """A turn that waits for its reply."""

    message: Message
    reply: asyncio.Future[Reply]
    deaths: int = 0

    def fail(self, error: Exception) -> None:
        """Tell it that there will be none."""
        if not self.reply.done():
            self.reply.set_exception(error)


async def told_if_long(answer: Any, what: str) -> None:
    """Wait for an actor's first answer; if that takes long, say what is waited for."""
    answered = asyncio.ensure_future(answer)
    try:
        if not (await asyncio.wait([answered], timeout=_SAY_S))[0]:
            _LOG.warning("Waiting for %s: there is no node with room for it, or it takes long to start", what)
        await answered
    finally:
        answered.cancel()


def _next(several: deque[_Waiting]) -> _Waiting | None:
    """The next one for whose reply somebody still waits."""
    while several:
        waiting = several.popleft()
        if not waiting.reply.done():
            return waiting
    return None
