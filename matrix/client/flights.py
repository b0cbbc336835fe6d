"""Rows that are under way, and when each of them is late."""

from __future__ import annotations

import asyncio
import time
from typing import Literal

from matrix.client.parse import Parse
from matrix.client.tries import TryFailedError

_LOOK_S = 0.05
STOOD_STILL_S = 0.5
"""A process that hasn't looked for so much longer than it wanted to stood still as a whole: no server's fault."""


class Flight:
    """A row that is under way, from the first time it was let through the gate to its answer or error.

    Attributes:
        label: What the caller calls it.
        begun: It belongs to work that was let through before.
        started: When it was first let through (`time.monotonic`).
        phase: `sent`: with a server; `waiting`: between tries, at the gate or for a server that can be reached.
        attempt: Tries so far, the one under way included.
        endpoint: Base URL of the last try's server; empty before the first.
        sent_at: When the last try was sent (`time.monotonic`).
        deadline: When its time is over; infinite until it is let through the gate.
        due: When what it does now has to be over: the deadline, or the limit of a try before that.
        away_since: Since when it has only been turned away, or reached nobody; infinite: it hasn't.
        late: It was told that `due` has passed, or that it is given up.
    """

    __slots__ = (
        "affinity", "attempt", "away_since", "begun", "deadline", "due", "endpoint", "faults", "given_up", "label",
        "last", "late", "parse", "path", "payload", "phase", "sent_at", "started", "task", "tokens", "tried",
    )  # fmt: skip

    def __init__(
        self,
        path: str,
        parse: Parse,
        payload: bytes,
        *,
        affinity: str | None,
        label: str,
        tokens: float,
        begun: bool = False,
    ) -> None:
        self.path, self.parse, self.payload = path, parse, payload
        self.affinity, self.label, self.tokens, self.begun = affinity, label, tokens, begun
        self.phase: Literal["waiting", "sent"] = "waiting"
        self.endpoint = ""
        self.attempt = 0
        self.started = self.sent_at = 0.0
        self.tried: set[str] = set()
        self.faults = 0
        self.last: TryFailedError | None = None
        self.given_up = ""
        self.deadline = self.due = self.away_since = float("inf")
        self.late = False
        self.task: asyncio.Task[object] | None = None

    def is_late(self) -> bool:
        """Whether a CancelledError means that it is late, and nothing else; it can be late again after that."""
        was_late, self.late = self.late, False
        # `Task.cancel` counts: more than ours means that somebody wants the task to end.
        return was_late and self.task is not None and not self.task.uncancel()

    def end(self) -> None:
        """Have its task get a CancelledError at the await that it is in."""
        if self.task is not None and not self.late:
            self.late = True
            self.task.cancel()


class Flights:
    """All rows that are under way, on one event loop; those that are late are told so.

    One timer looks at all of them: one for each (`asyncio.timeout`) takes a tenth of a busy client's time. It runs only
    while there are some, so that there is nothing to close.

    Attributes:
        landed_at: When a row last got its answer or error (`time.monotonic`).
    """

    def __init__(self) -> None:
        self.landed_at = 0.0
        # A dict keeps the order in which they started.
        self._all: dict[Flight, None] = {}
        self._looks = False
        self._last = 0.0

    def start(self, flight: Flight, timeout_s: float) -> None:
        """Let a row's time run; called by the task that it is the business of."""
        flight.task = asyncio.current_task()
        flight.started = time.monotonic()
        flight.deadline = flight.started + timeout_s
        self._all[flight] = None
        if not self._looks:
            self._looks = True
            self._last = time.monotonic()
            asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def land(self, flight: Flight) -> None:
        """The row has its answer or error."""
        self._all.pop(flight, None)
        self.landed_at = time.monotonic()

    def list(self) -> list[Flight]:
        """Those under way, the oldest first."""
        return list(self._all)

    def give_up(self, flight: Flight, why: str) -> None:
        """End a row before its time."""
        if flight in self._all and not flight.given_up:
            flight.given_up = why
            flight.end()

    def _look(self) -> None:
        now = time.monotonic()
        stood_still_s, self._last = now - self._last - _LOOK_S, now
        for flight in self._all:
            if stood_still_s > STOOD_STILL_S:
                flight.deadline += stood_still_s
                flight.due += stood_still_s
            if flight.due <= now:
                flight.end()
        self._looks = bool(self._all)
        if self._looks:
            asyncio.get_running_loop().call_later(_LOOK_S, self._look)
