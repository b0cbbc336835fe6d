"""How long something may go on: a row, or a turn."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Any

from matrix.client.flights import STOOD_STILL_S

NEVER = float("inf")
_LOOK_S = 0.1


class Clock:
    """How long something may go on: a row, or a turn, whose time stands still while its requests are with the client.

    Attributes:
        due: When it is late (`time.monotonic`).
        ended: When what it was set for last was over.
        late: It was cancelled for that.
    """

    __slots__ = ("_left", "_paused", "due", "ended", "late", "task")

    def __init__(self, task: asyncio.Task[Any] | None, due: float | None = None) -> None:
        self.task = task
        self.due = NEVER if due is None else due
        self.ended = 0.0
        self.late = False
        self._left = 0.0
        self._paused = 0

    def __enter__(self) -> None:
        if not self._paused:
            self._left, self.due = self.due - time.monotonic(), NEVER
        self._paused += 1

    def __exit__(self, *_: object) -> None:
        self._paused -= 1
        if not self._paused:
            self.due = time.monotonic() + self._left

    def end(self) -> None:
        """Cancel what is late."""
        self.due, self.late = NEVER, True
        if self.task is not None:
            self.task.cancel()

    def was_late(self) -> bool:
        """Whether a CancelledError means that this is late, and nothing else; it can be late again after that."""
        late, self.late = self.late, False
        return late and self.task is not None and not self.task.uncancel()

    def rest(self) -> None:
        """Stand still until it is set again; that it was late, which a role kept to itself, is forgotten."""
        self.due = NEVER
        if self.late:
            self.was_late()


UNLIMITED = Clock(None)
"""For what may go on for ever."""


async def end_what_is_late(clocks: AbstractSet[Clock], looked: Callable[[], None] = lambda: None) -> None:
    """Cancel what is late, until this is cancelled itself.

    A time in which the whole process stood still, since one row kept it busy or it was stopped, is nobody's time.

    Args:
        clocks: Whatever has a time limit; it goes on changing.
        looked: Told each time.
    """
    last = time.monotonic()
    while True:
        await asyncio.sleep(_LOOK_S)
        now = time.monotonic()
        stood_still_s, last = now - last - _LOOK_S, now
        for clock in list(clocks):
            if stood_still_s > STOOD_STILL_S:
                clock.due += stood_still_s
            if clock.due <= now:
                clock.end()
        looked()
