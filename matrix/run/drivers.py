"""Several processes that share the rows of a run: actors on the Ray cluster, fed by this process.

This process reads the data set and hands the rows out in leases of a few, to whoever has room: a driver tells what is
over and gets new rows in one call. A driver has a client, scorers and a part file of its own; a row is over when it is
in that file. When a driver dies, those of its rows that aren't there are leased again, with the steps that it had
journalled; a row that was running when that happened, again and again, becomes an error. A driver that finds nothing
left to do gets rows of the one that has the most. A driver whose node isn't there (yet) waits for it, and the others
don't wait for the driver.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from matrix.agents.attempts import PastAttempts
from matrix.agents.pool import told_if_long
from matrix.agents.pulse import Pulse, total
from matrix.data.parts import decode_row, heads
from matrix.data.rows import RowKey
from matrix.data.work import Work
from matrix.errors import ClusterError
from matrix.run.budget import Budget
from matrix.run.console import log
from matrix.run.driver import Driver, Status
from matrix.run.progress import Progress
from matrix.run.session import Served
from matrix.spec import RunSpec

_LOOK_S = 0.5
_STOP_S = 10.0
_DEATHS = 3
"""A driver that dies so often before it finishes a row, and by no row's fault, is given up."""
_BALANCE_S = 1.0
"""A driver without anything to do asks for rows of others so often."""


@dataclass
class _Seat:
    """A driver as this process knows it; another one takes its place if it dies.

    Attributes:
        name: Its name, which its part file has, too.
        actor: The actor that sits there; None while there is none.
        is_open: Whether it is up.
        status: What it last said.
        rows: The rows that it has.
    """

    name: str
    actor: Any = None
    is_open: bool = False
    status: Status = field(default_factory=Status)
    rows: dict[RowKey, Work] = field(default_factory=dict)


class _Returned(NamedTuple):
    """A row that is to be leased again.

    Attributes:
        work: The row.
        giver: The driver that was to give it to another one; None: its driver has died.
        at: When that was (`time.monotonic`).
    """

    work: Work
    giver: _Seat | None
    at: float


class Drivers:
    """The drivers of one run, and who has which rows.

    Args:
        spec: The run's spec.
        served: Who answers, by app.
        run_dir: The run dir, on a file system that all nodes share.
        progress: Told what the drivers finish.
        budget: Told the same; the drivers begin no more rows once it is spent.
        past: What earlier starts left of rows that aren't finished.
        actors: Processes of a team's roles, by role.
    """

    def __init__(
        self,
        spec: RunSpec,
        served: Mapping[str, Served],
        run_dir: Path,
        progress: Progress,
        budget: Budget,
        past: PastAttempts,
        actors: Mapping[str, list[Any]],
    ) -> None:
        self._spec, self._served, self._run_dir, self._actors = spec, served, run_dir, actors
        self._progress, self._budget, self._attempts = progress, budget, past
        self._returned: deque[_Returned] = deque()
        self._seats: list[_Seat] = []
        self._dry = False
        self._past: list[Pulse] = []
        self._changed = asyncio.Event()
        self._to_do = asyncio.Event()
        progress.in_flight = lambda: sum(seat.status.in_flight for seat in self._seats)
        if spec.agents is not None:
            progress.pulse = self._pulse

    async def run(self, work: Iterator[Work]) -> None:
        """Work all rows through.

        Raises:
            DataError: Rows can't be read or written.
            ClusterError: A driver dies again and again.
        """
        self._work = work
        self._seats = [_Seat(f"driver-{number}") for number in range(self._spec.workload.drivers)]
        asking = [asyncio.create_task(self._ask_on(seat)) for seat in self._seats]
        busy = [asyncio.create_task(self._keep_busy(seat)) for seat in self._seats]
        over = asyncio.create_task(self._until_over())
        try:
            await asyncio.wait([over, *busy, *asking], return_when=asyncio.FIRST_COMPLETED)
            for task in (*busy, *asking):
                if task.done():
                    task.result()
            await over
        except Exception as error:
            raise _ours(error) from error
        finally:
            for task in (over, *busy, *asking):
                task.cancel()
            await asyncio.gather(over, *busy, *asking, return_exceptions=True)
            await asyncio.gather(*map(self._end, self._seats))

    async def _fill(self, seat: _Seat) -> None:
        """Start a driver."""
        import ray

        # No CPU of its own: it must find room beside engines, and waits for them most of the time.
        options: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": "SPREAD", "max_concurrency": 1000}
        options["resources"] = self._spec.workload.resources
        arguments = (self._spec, self._served, self._run_dir, seat.name, self._actors)
        seat.actor = ray.remote(**options)(Driver).remote(*arguments)
        await told_if_long(seat.actor.open.remote(), seat.name)
        seat.is_open = True

    async def _until_over(self) -> None:
        """Wait until every row is finished; drivers that are still to come aren't waited for."""
        while not self._is_over():
            self._changed.clear()
            await self._changed.wait()

    def _is_over(self) -> bool:
        waits = not self._dry or (self._returned and not self._budget.is_spent)
        return not waits and not any(seat.rows for seat in self._seats)

    def _next(self, seat: _Seat, most: int) -> list[Work]:
        if self._budget.is_spent:
            self._dry = True
            return []
        # What a driver gives away mustn't come back to it at once: it has room for that before anybody else looks.
        lately = time.monotonic() - 2 * _BALANCE_S
        again = [one for one in self._returned if one.giver is not seat or one.at < lately][:most]
        for one in again:
            self._returned.remove(one)
        if again:
            return [self._attempts.resumed(one.work) for one in again]
        if self._dry:
            return []
        found = list(islice(self._work, most))
        self._dry = len(found) < most
        return [self._attempts.resumed(work) for work in found]

    async def _keep_busy(self, seat: _Seat) -> None:
        """Hand rows to a driver as long as there may be some, and replace it if it dies."""
        import ray

        deaths = 0
        while True:
            try:
                await self._fill(seat)
                async for finished in self._feed(seat):
                    deaths = 0 if finished else deaths
            except ray.exceptions.RayActorError as error:
                guilty = self._attempts.died(seat.name) if seat.is_open else None
                deaths += guilty is None
                if deaths == _DEATHS:
                    raise ClusterError(f"{seat.name} died {_DEATHS} times in a row: {error}") from error
                returned = await self._take_back(seat)
                blamed = f" while row {guilty.index}, trial {guilty.trial} was running" if guilty is not None else ""
                said = "%s died%s: another one takes its place, %d rows are leased again"
                log.warning(said, seat.name, blamed, returned)

    async def _feed(self, seat: _Seat) -> AsyncIterator[bool]:
        """Exchange what is over for new rows; yields whether any were over."""
        room = 1
        while True:
            rows = self._next(seat, room) if room else []
            if not rows and not seat.rows:
                self._changed.set()
                await self._find_work()
                room = 1
                continue
            for work in rows:
                seat.rows[work.key] = work
            told = await seat.actor.exchange.remote(rows, more=not self._dry)
            for key in told.over:
                del seat.rows[key]
                self._attempts.finished(key)
            for work in told.handed_over:
                del seat.rows[work.key]
                self._return([work], seat)
            room = told.room
            if self._dry:
                self._changed.set()
            yield bool(told.over)

    async def _find_work(self) -> None:
        """Nothing is left: have the driver that has the most rows share them, and look again when something changes."""
        fullest = max(self._seats, key=lambda one: len(one.rows))
        if len(fullest.rows) > 1 and fullest.is_open and not self._returned:
            idle = sum(one.is_open and not one.rows for one in self._seats)
            fullest.actor.give.remote(len(fullest.rows) * idle // (idle + 1))
        self._to_do.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._to_do.wait(), _BALANCE_S)

    async def _take_back(self, seat: _Seat) -> int:
        """Lease again what a dead driver had and didn't finish."""
        seat.actor, seat.is_open = None, False
        if seat.status.pulse is not None:
            self._past.append(_at_rest(seat.status.pulse))
        part = self._run_dir / "rows" / f"part-{seat.name}.jsonl"
        there: set[tuple[int, int]] = set()
        if part.is_file():
            with part.open("rb") as lines:
                for offset, length, index, trial, _ in heads(part):
                    there.add((index, trial))
                    if offset >= seat.status.size:
                        # It never said so.
                        self._progress.add(decode_row(os.pread(lines.fileno(), length, offset)))
        self._attempts.left(seat.name, seat.rows.keys() - there)
        rows = [work for key, work in seat.rows.items() if key not in there]
        size = seat.status.size
        seat.status = Status(size=max(size, part.stat().st_size if part.is_file() else 0))
        self._return(rows)
        seat.rows.clear()
        self._changed.set()
        return len(rows)

    def _return(self, rows: list[Work], giver: _Seat | None = None) -> None:
        now = time.monotonic()
        self._returned.extend(_Returned(work, giver, now) for work in rows)
        self._to_do.set()

    def _pulse(self) -> Pulse:
        return total([*self._past, *(seat.status.pulse for seat in self._seats if seat.status.pulse is not None)])

    async def _ask_on(self, seat: _Seat) -> None:
        """Each driver is asked by itself: one that doesn't answer must not keep the budget from the others."""
        while True:
            await asyncio.sleep(_LOOK_S)
            await self._ask(seat)

    async def _ask(self, seat: _Seat) -> None:
        import ray

        if not seat.is_open:
            return
        with suppress(ray.exceptions.RayActorError):
            self._hear(seat, await seat.actor.status.remote())

    def _hear(self, seat: _Seat, status: Status) -> None:
        seat.status = status
        for level, text in status.said:
            log.log(level, "%s", text)
        self._progress.merge(status.counts)
        if self._budget.spend(self._progress.counts, sum(len(one.rows) for one in self._seats)):
            for other in self._seats:
                if other.is_open:
                    other.actor.close_gate.remote()

    async def _end(self, seat: _Seat) -> None:
        import ray

        if seat.actor is None:
            return
        if seat.is_open:
            with suppress(ray.exceptions.RayError, TimeoutError):
                self._hear(seat, await asyncio.wait_for(seat.actor.close.remote(), _STOP_S))
            if seat.status.pulse is not None:
                self._past.append(_at_rest(seat.status.pulse))
        ray.kill(seat.actor)
        seat.status = Status()


def _at_rest(pulse: Pulse) -> Pulse:
    """What a driver that has gone did; nothing is in flight in it any more."""
    for role in pulse.roles.values():
        role.in_flight = 0
    pulse.rows, pulse.slowest = 0, []
    return pulse


def _ours(error: Exception) -> Exception:
    """The error as it was raised in the driver, without Ray's frames around it."""
    import ray

    return error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
