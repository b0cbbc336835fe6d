"""Servers and a caller that never runs out of requests, in virtual time: hours in milliseconds, the same each time."""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count, pairwise
from typing import Protocol

from matrix.client.concurrency import AdaptiveLimit


class Server(Protocol):
    """Takes jobs, and says which end next."""

    def take(self, now: float, job: int) -> float | None:
        """Accept a job, or refuse it: its `Retry-After`."""

    def next_end(self) -> float:
        """When a job ends; inf if there is none."""

    def end(self) -> int:
        """The job that ends then."""


class Slots:
    """`slots` jobs at a time, the others wait: what vLLM does with `max_num_seqs`, or any pool of workers.

    Args:
        slots: May be changed while it goes.
        service_s: Draws how long a job takes.
        room: Jobs that may be there, waiting or not; more are refused. None: any number.
        retry_after_s: What a refusal says.
    """

    def __init__(
        self,
        slots: float,
        service_s: Callable[[], float],
        room: float = math.inf,
        retry_after_s: float = 0.0,
    ) -> None:
        self.slots, self.service_s, self.room, self.retry_after_s = slots, service_s, room, retry_after_s
        self.asked_while_closed = 0
        self.refusing_until = 0.0
        self._running: list[tuple[float, int]] = []
        self._waiting: deque[int] = deque()

    def take(self, now: float, job: int) -> float | None:
        if now < self.refusing_until:
            self.asked_while_closed += 1
            return self.refusing_until - now
        if len(self._running) + len(self._waiting) >= self.room:
            return self.retry_after_s
        self._waiting.append(job)
        self._fill(now)
        return None

    def next_end(self) -> float:
        return self._running[0][0] if self._running else math.inf

    def end(self) -> int:
        at, job = heapq.heappop(self._running)
        self._fill(at)
        return job

    def stand_still(self, seconds: float) -> None:
        """All that run take that much longer."""
        self._running = [(at + seconds, job) for at, job in self._running]

    def _fill(self, now: float) -> None:
        while self._waiting and len(self._running) < self.slots:
            heapq.heappush(self._running, (now + self.service_s(), self._waiting.popleft()))


class Batching:
    """An engine with continuous batching: all jobs share a speed that grows with their number, less and less.

    Args:
        speed: From jobs to tokens a second, all together.
        tokens: Draws the length of a job.
    """

    def __init__(self, speed: Callable[[int], float], tokens: Callable[[], float]) -> None:
        self._speed, self._tokens = speed, tokens
        # Tokens that every job got since the start: a job ends when that has grown by its own number.
        self._each, self._at = 0.0, 0.0
        self._ends: list[tuple[float, int]] = []

    def take(self, now: float, job: int) -> float | None:
        self._go_on(now)
        heapq.heappush(self._ends, (self._each + self._tokens(), job))
        return None

    def next_end(self) -> float:
        if not self._ends:
            return math.inf
        return self._at + (self._ends[0][0] - self._each) * len(self._ends) / self._speed(len(self._ends))

    def end(self) -> int:
        self._go_on(self.next_end())
        return heapq.heappop(self._ends)[1]

    def _go_on(self, now: float) -> None:
        if self._ends:
            self._each += (now - self._at) * self._speed(len(self._ends)) / len(self._ends)
        self._at = now


@dataclass
class Record:
    """What happened: (time, limit) after every event, and the times of answers and refusals."""

    limits: list[tuple[float, int]] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    most_in_flight: int = 0

    def mean_limit(self, since: float, until: float = math.inf) -> float:
        """The limit averaged over time."""
        some = [(at, limit) for at, limit in self.limits if since <= at < until]
        spans = [(later - at, limit) for (at, limit), (later, _) in pairwise(some)]
        return sum(span * limit for span, limit in spans) / sum(span for span, _ in spans)

    def rate(self, since: float, until: float) -> float:
        """Answers a second."""
        return sum(since <= at < until for at in self.answered) / (until - since)


def drive(
    limit: AdaptiveLimit,
    server: Server,
    until: float,
    *,
    demand: int = 10**9,
    events: Sequence[tuple[float, Callable[[], None]]] = (),
    refusal_s: float = 0.002,
) -> Record:
    """Send as much as the limit admits, `demand` at most at a time, until a time; `events` happen in between."""
    record, jobs, sent = Record(), count(), dict[int, float]()
    refusals: list[tuple[float, int, float]] = []
    coming = iter(events)
    event = next(coming, None)
    now = 0.0
    while now < until:
        while limit.in_flight < demand and limit.admits(now):
            job = next(jobs)
            limit.started(now)
            sent[job] = now
            again_in = server.take(now, job)
            if again_in is not None:
                heapq.heappush(refusals, (now + refusal_s, job, again_in))
            record.most_in_flight = max(record.most_in_flight, limit.in_flight)
        ends, refuses = server.next_end(), refusals[0][0] if refusals else math.inf
        happens = event[0] if event else math.inf
        opens = limit.paused_until if limit.paused_until > now else math.inf
        now = min(ends, refuses, happens, opens)
        assert now < math.inf, "nothing will ever happen again"
        if now == ends:
            limit.succeeded(now, sent.pop(server.end()))
            record.answered.append(now)
        elif now == refuses:
            _, job, again_in = heapq.heappop(refusals)
            limit.refused(now, sent.pop(job), again_in)
            record.refused.append(now)
        elif now == happens and event:
            event[1]()
            event = next(coming, None)
        record.limits.append((now, limit.limit))
    return record


def around(mean: float, spread: float, seed: int = 0) -> Callable[[], float]:
    """Draws from a gamma distribution; `spread` is its standard deviation over its mean (0: always the mean)."""
    draw = random.Random(seed)
    if not spread:
        return lambda: mean
    shape = 1 / spread**2
    return lambda: draw.gammavariate(shape, mean / shape)
