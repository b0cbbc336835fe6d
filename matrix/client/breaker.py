"""A circuit breaker: when a replica that fails is left alone, and when it is tried again. A pure state machine."""

from __future__ import annotations

OPENS_AFTER = 5
"""Failures in a row that open it. One request that an engine can't digest fails on its own, with successes of others
around it; five in a row are the engine's fault."""
FIRST_OPEN_S = 0.5
LONGEST_OPEN_S = 5.0
"""An engine that restarts is found this soon after it listens."""
PROBE_S = 30.0
"""A probe that says nothing for so long is joined by another: a long answer must not keep a healthy replica idle."""


class Breaker:
    """Closed: everything passes. Open: nothing until a time. Then half-open: one request, the probe, decides.

    A replica that can't be reached opens it at once, other failures (time-outs, 5xx, garbage) when `OPENS_AFTER` follow
    one another. The open time doubles from `FIRST_OPEN_S` to `LONGEST_OPEN_S` with each probe that fails. Any success
    closes it. Times are those of one clock, in seconds, passed in.

    Attributes:
        failures: Failures in a row.
        open_s: How long it opened last; 0 while it is closed.
        until: Nothing passes before, unless it is closed.
        unreachable: The last failure didn't get as far as the replica.
    """

    __slots__ = ("_opened_at", "failures", "open_s", "unreachable", "until")

    def __init__(self) -> None:
        self.failures = 0
        self.open_s = 0.0
        self.until = 0.0
        self._opened_at = 0.0
        self.unreachable = False

    def failed(self, now: float, sent_at: float, *, unreachable: bool = False) -> bool:
        """Count a failure.

        Args:
            now: The time.
            sent_at: When the request was sent. What was sent before it opened says nothing new.
            unreachable: The request didn't get as far as the replica.

        Returns:
            Whether it opened, or opened again.
        """
        if self.open_s and sent_at < self._opened_at:
            return False
        self.failures += 1
        self.unreachable = unreachable
        if not self.open_s and not unreachable and self.failures < OPENS_AFTER:
            return False
        self.open_s = min(self.open_s * 2 or FIRST_OPEN_S, LONGEST_OPEN_S)
        self._opened_at = now
        self.until = now + self.open_s
        return True

    def probe(self, now: float) -> None:
        """Let one request through a half-open breaker: the next one has to wait for what comes of it."""
        self.until = now + PROBE_S

    def succeeded(self) -> None:
        """Close."""
        self.failures = 0
        self.open_s = 0.0
