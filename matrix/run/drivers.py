"""Several processes that share the rows of a run: actors on the Ray cluster, fed by this process.

This process reads the data set and hands the rows out in leases of a few. A driver has a client, scorers and a part
file of its own; a lease is over when all its rows are in that file. How many rows a driver holds follows the limit that
its own concurrency control has found, so that a slow one holds fewer and none idles at the end. When a driver dies, the
rows of its leases that aren't in its part file are leased again, to the driver that takes its place.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from matrix.data.parts import decode_row, heads
from matrix.errors import ClusterError
from matrix.pipelines.generate import Work
from matrix.run.budget import Budget
from matrix.run.console import log
from matrix.run.driver import Driver, Lease, Status
from matrix.run.progress import Progress
from matrix.run.session import Served
from matrix.spec import RunSpec

_LEASE = 64
"""Rows of a lease at most; a quarter of what a driver has in flight, if that is less."""
_LOOK_S = 0.5
_STOP_S = 10.0
_DEATHS = 3
"""A driver that dies so often before it finishes a lease is given up."""


@dataclass
class _Seat:
    """A driver as this process knows it; another one takes its place if it dies.

    Attributes:
        name: Its name, which its part file has, too.
        actor: The actor that sits there; None while there is none.
        status: What it last said.
        leases: The rows that it has, by lease.
    """

    name: str
    actor: Any = None
    status: Status = field(default_factory=Status)
    leases: dict[asyncio.Future[Any], Lease] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows that it has."""
        return sum(map(len, self.leases.values()))


class Drivers:
    """The drivers of one run, and who has which rows.

    Args:
        spec: The run's spec.
        served: Who answers.
        run_dir: The run dir, on a file system that all nodes share.
        progress: Told what the drivers finish.
        budget: Told the same; the drivers begin no more rows once it is spent.
    """

    def __init__(self, spec: RunSpec, served: Served, run_dir: Path, progress: Progress, budget: Budget) -> None:
        self._spec, self._served, self._run_dir = spec, served, run_dir
        self._progress, self._budget = progress, budget
        self._returned: deque[Work] = deque()
        self._seats: list[_Seat] = []
        progress.in_flight = lambda: sum(seat.status.in_flight for seat in self._seats)

    async def run(self, work: Iterator[Work]) -> None:
        """Work all rows through.

        Raises:
            DataError: Rows can't be read or written.
            ClusterError: A driver dies again and again.
        """
        self._work = work
        self._seats = [_Seat(f"driver-{number}") for number in range(self._spec.workload.drivers)]
        asking = asyncio.create_task(self._ask_all())
        try:
            async with asyncio.TaskGroup() as group:
                for seat in self._seats:
                    group.create_task(self._keep_busy(seat))
        except ExceptionGroup as several:
            raise _ours(several.exceptions[0]) from several
        finally:
            asking.cancel()
            with suppress(asyncio.CancelledError):
                await asking
            await asyncio.gather(*map(self._end, self._seats))

    async def _fill(self, seat: _Seat) -> None:
        """Start a driver."""
        import ray

        # No CPU of its own: it must find room beside engines, and waits for them most of the time.
        options: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": "SPREAD", "max_concurrency": 1000}
        options["resources"] = self._spec.workload.resources
        actor = ray.remote(**options)(Driver).remote(self._spec, self._served, self._run_dir, seat.name)
        await actor.open.remote()
        seat.actor = actor
        await self._ask(seat)

    def _next(self, most: int) -> Lease:
        if self._budget.is_spent:
            return []
        again = [self._returned.popleft() for _ in range(min(most, len(self._returned)))]
        return again or list(islice(self._work, most))

    async def _keep_busy(self, seat: _Seat) -> None:
        """Hand leases to a driver until there are no more, and replace it if it dies."""
        import ray

        deaths = 0
        while True:
            try:
                await self._fill(seat)
                async for _ in self._leases_over(seat):
                    deaths = 0
            except ray.exceptions.RayActorError as error:
                deaths += 1
                if deaths == _DEATHS:
                    raise ClusterError(f"{seat.name} died {_DEATHS} times in a row: {error}") from error
                returned = await self._take_back(seat) if seat.actor is not None else 0
                log.warning("%s died: another one takes its place, %d rows are leased again", seat.name, returned)
            else:
                return

    async def _leases_over(self, seat: _Seat) -> AsyncIterator[None]:
        """Hand out leases as the driver has room for them; yields whenever some are over."""
        while True:
            size = max(1, min(_LEASE, seat.status.limit // 4))
            while seat.rows < seat.status.limit + size and (lease := self._next(size)):
                seat.leases[asyncio.ensure_future(seat.actor.work.remote(lease))] = lease
            if not seat.leases:
                return
            over, _ = await asyncio.wait(seat.leases, return_when=asyncio.FIRST_COMPLETED)
            for future in over:
                # A lease of a driver that died stays in the list.
                await future
                del seat.leases[future]
            yield

    async def _take_back(self, seat: _Seat) -> int:
        """Lease again what a dead driver had and didn't finish."""
        seat.actor = None
        await asyncio.gather(*seat.leases, return_exceptions=True)
        part = self._run_dir / "rows" / f"part-{seat.name}.jsonl"
        there = set()
        with part.open("rb") as lines:
            for offset, length, index, trial, _ in heads(part):
                there.add((index, trial))
                if offset >= seat.status.size:
                    # It never said so.
                    self._progress.add(decode_row(os.pread(lines.fileno(), length, offset)))
        rows = [row for lease in seat.leases.values() for row in lease if (row[0].index, row[1]) not in there]
        self._returned.extend(rows)
        seat.leases.clear()
        return len(rows)

    async def _ask_all(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            for seat in self._seats:
                await self._ask(seat)

    async def _ask(self, seat: _Seat) -> None:
        import ray

        if seat.actor is None:
            return
        with suppress(ray.exceptions.RayActorError):
            self._hear(seat, await seat.actor.status.remote())

    def _hear(self, seat: _Seat, status: Status) -> None:
        seat.status = status
        for level, text in status.said:
            log.log(level, "%s", text)
        self._progress.merge(status.counts)
        if self._budget.spend(self._progress.counts, self._progress.in_flight()):
            for other in self._seats:
                if other.actor is not None:
                    other.actor.close_gate.remote()

    async def _end(self, seat: _Seat) -> None:
        import ray

        if seat.actor is None:
            return
        with suppress(ray.exceptions.RayError, TimeoutError):
            self._hear(seat, await asyncio.wait_for(seat.actor.close.remote(), _STOP_S))
        ray.kill(seat.actor)
        await asyncio.gather(*seat.leases, return_exceptions=True)
        seat.status = Status()


def _ours(error: Exception) -> Exception:
    """The error as it was raised in the driver, without Ray's frames around it."""
    import ray

    return error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
