"""Commands of the host that run something, or make or remove it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

from matrix.errors import AppError

_PIECE = 1 << 16
_LEFT_S = 1.0
"""How long the output of a command is waited for that has ended: something else may hold its pipes."""
_SHOWN = 2000


@dataclass(frozen=True, slots=True)
class Ended:
    """What came of a command.

    Attributes:
        exit_code: As a shell gives it; None if it was ended since it took too long.
        output: What it wrote to stdout, and to stderr if that isn't apart.
        stderr: Empty unless it is apart.
        cut: Bytes that are missing in the middle of the two.
        wall_s: Seconds that it ran.
    """

    exit_code: int | None
    output: bytes
    stderr: bytes
    cut: int
    wall_s: float


class Kept:
    """The beginning and the end of a stream: all of it up to a limit, then what is in the middle is dropped.

    Args:
        limit: Bytes.
    """

    def __init__(self, limit: int) -> None:
        self._half = limit // 2
        self._head, self._tail = bytearray(), bytearray()
        self._size = 0

    def add(self, piece: bytes) -> None:
        """Take what has come."""
        self._size += len(piece)
        room = self._half - len(self._head)
        self._head += piece[:room]
        self._tail += piece[room:]
        if len(self._tail) > 2 * self._half + _PIECE:
            del self._tail[: -self._half]

    def result(self) -> tuple[bytes, int]:
        """What is kept, with a line in place of what isn't, and how much that is."""
        cut = max(self._size - 2 * self._half, 0)
        if not cut:
            return bytes(self._head + self._tail), 0
        return bytes(self._head) + b"\n[... %d bytes left out ...]\n" % cut + bytes(self._tail[-self._half :]), cut


async def run(
    command: Sequence[str],
    *,
    limit: int,
    timeout_s: float | None = None,
    stdin: bytes | IO[bytes] = b"",
    apart: bool = False,
    environment: Mapping[str, str] | None = None,
    descriptors: Sequence[int] = (),
) -> Ended:
    """Run a command to its end. Cancelled, or when its time is over, it is killed with its whole process group.

    Args:
        command: Program and arguments.
        limit: Bytes of each output that are kept.
        timeout_s: Seconds that it may take; None: no limit.
        stdin: What it reads, or an open file.
        apart: Give stderr apart.
        environment: All of its environment; None: ours.
        descriptors: Open files that it gets under their numbers; they are closed here.

    Raises:
        OSError: There is no such program.
    """
    began = time.monotonic()
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=stdin if not isinstance(stdin, bytes) else PIPE if stdin else DEVNULL,
            stdout=PIPE,
            stderr=PIPE if apart else STDOUT,
            env=environment,
            pass_fds=descriptors,
            start_new_session=True,
        )
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    kept = [(Kept(limit), stream) for stream in (process.stdout, process.stderr) if stream is not None]
    streams = [asyncio.create_task(_drain(stream, into)) for into, stream in kept]
    if process.stdin is not None and isinstance(stdin, bytes):
        streams.append(asyncio.create_task(_feed(process.stdin, stdin)))
    timed_out = False
    try:
        async with asyncio.timeout(timeout_s):
            await process.wait()
    except TimeoutError:
        timed_out = True
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        await asyncio.wait(streams, timeout=_LEFT_S)
        for stream in streams:
            stream.cancel()
        # The pipes, if somebody else holds their other ends.
        process._transport.close()  # type: ignore[attr-defined]  # noqa: SLF001 - asyncio has no other way
    code = process.returncode
    assert code is not None  # noqa: S101
    results = [into.result() for into, _ in kept]
    return Ended(
        exit_code=None if timed_out else 128 - code if code < 0 else code,
        output=results[0][0],
        stderr=results[1][0] if apart else b"",
        cut=sum(cut for _, cut in results),
        wall_s=time.monotonic() - began,
    )


async def must(
    command: Sequence[str],
    what: str,
    environment: Mapping[str, str] | None = None,
    stdin: bytes | IO[bytes] = b"",
) -> str:
    """Run a command that has to work; what it says.

    Args:
        command: Program and arguments.
        what: What it is for, for the error.
        environment: All of its environment; None: ours.
        stdin: What it reads, or an open file.

    Raises:
        AppError: It does not.
    """
    try:
        ended = await run(command, limit=1 << 20, stdin=stdin, apart=True, environment=environment)
    except OSError as error:
        raise AppError(f"{what}: {command[0]} can't be run: {error}") from error
    if ended.exit_code != 0:
        said = (ended.stderr or ended.output).decode(errors="replace").strip()[-_SHOWN:]
        raise AppError(f"{what}: {command[0]} ended with {ended.exit_code}: {said}")
    return ended.output.decode(errors="replace")


async def _drain(stream: asyncio.StreamReader, into: Kept) -> None:
    while piece := await stream.read(_PIECE):
        into.add(piece)


async def _feed(stream: asyncio.StreamWriter, content: bytes) -> None:
    # Who doesn't read to the end is no error of ours.
    with suppress(ConnectionError):
        stream.write(content)
        await stream.drain()
        stream.close()
