"""The containers of a replica: who has which, for how long, and who waits for one."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from matrix.containers.process import Ended
from matrix.containers.runtime import Command, ContainerGoneError, Runtime, check_reference, in_a_shell, runtime_of
from matrix.errors import AppError, did_you_mean
from matrix.spec.services import ANY, ContainerEngine

MOST_BYTES = 64 << 20
"""Of a file that is read or written."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
"""An image's name that can stand in a path and leads nowhere else."""
_LOOK_S = 0.25
"""How often it is looked for leases that are over."""
_READ = (
    'test -d "$1" && echo "$1 is a folder" >&2 && exit 1; '
    'test -f "$1" || { echo "there is no file $1" >&2; exit 1; }; exec cat -- "$1"'
)
_WRITE = 'case $1 in */*) mkdir -p -- "${1%/*}/" || exit 1;; esac; exec cat > "$1"'
_FILE_S = 100.0

_log = logging.getLogger(__name__)


class ContainerError(Exception):
    """What was asked for can't be done.

    Attributes:
        reason: `refused` (it is the request's own fault), `busy` (all containers are taken), `ended` (there is no such
            lease any more), `begun` (this very call has come before), `failed`.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(eq=False)
class _Lease:
    name: str
    lease_s: float
    ends_at: float
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """A container runs one command at a time."""
    calls: set[str] = field(default_factory=set)
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    """Its calls that are under way or wait for their turn; while there are some it does not end by itself."""

    def renew(self) -> None:
        self.ends_at = time.monotonic() + self.lease_s


class ContainerPool:
    """Leases containers, up to `engine.containers` at a time; others wait in order of arrival.

    Args:
        engine: What they are, and their limits.

    Attributes:
        waiting: Those who wait for a container.
        taken: Containers that are leased, being started or being removed.
    """

    def __init__(self, engine: ContainerEngine) -> None:
        self._engine = engine
        self._runtime: Runtime = runtime_of(engine)
        self._places = asyncio.Semaphore(engine.containers)
        self._leases: dict[str, _Lease] = {}
        self._removals: set[asyncio.Task[None]] = set()
        self.waiting = self.taken = 0

    async def start(self) -> None:
        """Get ready, and remove what dead replicas have left.

        Raises:
            AppError: The machine lacks something.
        """
        await self._runtime.open()
        self._looking = asyncio.create_task(self._look())

    async def close(self) -> None:
        """End all containers, and leave nothing."""
        self._looking.cancel()
        tasks = {task for lease in self._leases.values() for task in lease.tasks}
        self._leases.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *self._removals, return_exceptions=True)
        # All at once: whoever ends a replica doesn't wait for long.
        await self._runtime.close()

    async def acquire(self, image: str, wait_s: float, lease_s: float | None = None) -> str:
        """Lease a container.

        Args:
            image: One of `engine.images`, or any where `engine.any_image` allows it.
            wait_s: How long to wait for a place.
            lease_s: Of the lease; None: `engine.lease_s`.

        Returns:
            What stands for the lease.

        Raises:
            ContainerError: `refused`, `busy`, or `failed`: it doesn't start.
        """
        source = self._source(image)
        await self._enter(wait_s)
        name = uuid.uuid4().hex[:12]
        try:
            async with asyncio.timeout(self._engine.start_container_s):
                await self._runtime.start(name, source)
        except BaseException as error:
            # Also what has been started of it.
            self._remove(name)
            if isinstance(error, TimeoutError):
                limit = f"{self._engine.start_container_s:g} s (engine.start_container_s)"
                raise ContainerError("failed", f"image={image}: no container within {limit}") from error
            if isinstance(error, AppError):
                raise ContainerError("failed", str(error)) from error
            raise
        token = uuid.uuid4().hex
        lease = self._leases[token] = _Lease(name, min(lease_s or self._engine.lease_s, self._engine.lease_s), 0.0)
        lease.renew()
        return token

    def lease_s(self, token: str) -> float:
        """Seconds without a sign of life after which a lease ends."""
        return self._lease(token).lease_s

    def renew(self, token: str) -> None:
        """Take a sign of life of a lease's holder.

        Raises:
            ContainerError: `ended`.
        """
        self._lease(token).renew()

    async def release(self, token: str) -> None:
        """End a lease, and what runs in its container; returns when that is gone.

        Raises:
            ContainerError: `ended`.
        """
        self._lease(token)
        await asyncio.shield(self._end(token))

    async def execute(
        self,
        token: str,
        command: str | list[str],
        *,
        call: str | None = None,
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        timeout_s: float | None = None,
        apart: bool = False,
    ) -> Ended:
        """Run a command in a lease's container; several are run one after another.

        Args:
            token: Of the lease.
            command: A text for a shell, or a program and its arguments.
            call: A name for this call: one that comes again under the same name is refused.
            cwd: Folder that it runs in.
            env: More of its environment.
            timeout_s: Seconds that it may take; None: `engine.timeout_s`.
            apart: Give stderr apart.

        Raises:
            ContainerError: `ended`, `begun`.
        """
        lease = self._lease(token)
        if call is not None:
            if call in lease.calls:
                raise ContainerError("begun", "this command was begun before, and its answer is lost")
            lease.calls.add(call)
        what = Command(
            in_a_shell(command) if isinstance(command, str) else command,
            self._engine.timeout_s if timeout_s is None else timeout_s,
            self._engine.output_kb << 10,
            cwd,
            env or {},
            apart=apart,
        )
        return await self._run(token, what)

    async def read(self, token: str, path: str) -> bytes:
        """Content of a file in a lease's container, read by a command there: no link leads out of it.

        Raises:
            ContainerError: `ended`, `refused`: there is no such file, or it is larger than `MOST_BYTES`.
        """
        line = ["sh", "-c", _READ, "sh", path]
        ended = await self._run(token, Command(line, _FILE_S, MOST_BYTES, apart=True))
        if ended.exit_code != 0:
            raise ContainerError("refused", f"{path} can't be read: {_said(ended)}")
        if ended.cut:
            raise ContainerError("refused", f"{path} has more than {MOST_BYTES >> 20} MiB")
        return ended.output

    async def write(self, token: str, path: str, content: bytes) -> None:
        """Write a file in a lease's container, and make the folders above it.

        Raises:
            ContainerError: `ended`, `refused`: it can't be written.
        """
        line = ["sh", "-c", _WRITE, "sh", path]
        ended = await self._run(token, Command(line, _FILE_S, 1 << 16, stdin=content, apart=True))
        if ended.exit_code != 0:
            raise ContainerError("refused", f"{path} can't be written: {_said(ended)}")

    async def _run(self, token: str, command: Command) -> Ended:
        lease = self._lease(token)
        task = asyncio.create_task(self._in_turn(lease, command))
        lease.tasks.add(task)
        try:
            return await task
        except ContainerGoneError:
            self._end(token)
            raise ContainerError("ended", "the container has ended by itself") from None
        except asyncio.CancelledError:
            if token not in self._leases and not _is_cancelled_itself():
                raise ContainerError("ended", "the container was given back while the command ran") from None
            raise
        finally:
            lease.tasks.discard(task)
            lease.renew()

    async def _in_turn(self, lease: _Lease, command: Command) -> Ended:
        async with lease.turn:
            return await self._runtime.execute(lease.name, command)

    def _lease(self, token: str) -> _Lease:
        lease = self._leases.get(token)
        if lease is None:
            raise ContainerError("ended", "there is no such container any more: its lease is over")
        return lease

    def _source(self, image: str) -> str:
        if image in self._engine.images:
            return self._engine.images[image]
        if (some := self._engine.images.get(ANY)) is not None and _NAME.fullmatch(image):
            return some.replace("{name}", image)
        if not self._engine.any_image:
            hint = did_you_mean(image, list(self._engine.images))
            raise ContainerError("refused", f"image={image}: this app doesn't have it in engine.images ({hint})")
        try:
            return check_reference(image, self._engine.backend)
        except AppError as error:
            raise ContainerError("refused", str(error)) from error

    async def _enter(self, wait_s: float) -> None:
        self.waiting += 1
        try:
            async with asyncio.timeout(wait_s):
                await self._places.acquire()
        except TimeoutError as error:
            raise ContainerError("busy", f"all {self._engine.containers} containers are taken") from error
        finally:
            self.waiting -= 1
        self.taken += 1

    def _end(self, token: str) -> asyncio.Task[None]:
        lease = self._leases.pop(token)
        for task in lease.tasks:
            task.cancel()
        return self._remove(lease.name, lease.tasks)

    def _remove(self, name: str, tasks: set[asyncio.Task[Any]] | None = None) -> asyncio.Task[None]:
        """Remove a container, once its calls are over; its place is free then."""

        async def remove() -> None:
            if tasks:
                await asyncio.wait(set(tasks))
            try:
                await self._runtime.remove(name)
            except AppError as error:
                # What is left of it goes with the replica, or before the next one starts.
                _log.error("%s", error)
            finally:
                self.taken -= 1
                self._places.release()

        task = asyncio.create_task(remove())
        self._removals.add(task)
        task.add_done_callback(self._removals.discard)
        return task

    async def _look(self) -> None:
        """End leases that nobody has used for too long."""
        while True:
            await asyncio.sleep(_LOOK_S)
            now = time.monotonic()
            for token, lease in list(self._leases.items()):
                if not lease.tasks and now > lease.ends_at:
                    _log.info("a lease is over, its client wasn't heard of for %g s", lease.lease_s)
                    self._end(token)


def _is_cancelled_itself() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _said(ended: Ended) -> str:
    if ended.exit_code is None:
        return f"it took more than {_FILE_S:g} s"
    return ended.stderr.decode(errors="replace").strip()[-1000:]
