"""Ctrl-C, SIGTERM and what a scheduler sends before it: one way to stop, whatever the run is doing."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

import uvloop

NOTICES = (signal.SIGUSR1, signal.SIGUSR2)
"""Slurm's notice that a job's time is nearly over, or that another one needs its place."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, *NOTICES)
T = TypeVar("T")


class Interrupted(KeyboardInterrupt):
    """The user or the system asked the run to stop.

    Attributes:
        number: The signal.
        exit_code: 128 + the signal's number, as a shell has it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.exit_code = 128 + number


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Raise `Interrupted` in the main thread when the process is asked to stop."""

    def stop(number: int, _frame: FrameType | None) -> None:
        raise Interrupted(number)

    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let a clean-up finish: signals that come in the meantime are ignored."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a uvloop; a signal cancels it at its next await, so that nothing is cut in the middle.

    Raises:
        Interrupted: A signal came.
    """
    caught: list[int] = []

    async def guarded() -> T:
        loop = asyncio.get_running_loop()
        task = loop.create_task(work)

        def stop(number: int) -> None:
            caught.append(number)
            task.cancel()

        for number in _SIGNALS:
            loop.add_signal_handler(number, stop, number)
        try:
            return await task
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(guarded())
    except asyncio.CancelledError:
        raise Interrupted(caught[0] if caught else signal.SIGINT) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
