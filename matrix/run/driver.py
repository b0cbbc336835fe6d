"""One of several processes that share the rows of a run: an actor on the Ray cluster. `drivers` feeds it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matrix.agents.pulse import Pulse
from matrix.agents.team import Team
from matrix.agents.workflow import LeavingError
from matrix.data.journal import Journal
from matrix.data.rows import Row, RowKey
from matrix.data.work import Work
from matrix.errors import DataError
from matrix.run.progress import Counts
from matrix.run.session import Served
from matrix.run.workload import Workload
from matrix.spec import RunSpec

_BITE = 64
"""Rows that are asked for at a time at most; a sixteenth of what the driver may have in flight, if that is less."""
_GATHER_S = 0.02
"""What finishes within so long is told together."""


@dataclass
class Status:
    """What a driver says since it was last asked.

    Attributes:
        in_flight: Requests that it has with servers.
        counts: Rows that it finished.
        size: Bytes of its part file, as far as the counts know it.
        pulse: How its team is doing; None without one.
        said: Records of its log: level and text.
    """

    in_flight: int = 0
    size: int = 0
    counts: Counts = field(default_factory=Counts)
    pulse: Pulse | None = None
    said: list[tuple[int, str]] = field(default_factory=list)


@dataclass
class Exchange:
    """What a driver gives for the rows that it is handed.

    Attributes:
        over: Keys of rows that are in its part file, or weren't begun since the gate is closed.
        handed_over: Rows that are to go on in another driver.
        room: Rows that it would take now.
    """

    over: list[RowKey] = field(default_factory=list)
    handed_over: list[Work] = field(default_factory=list)
    room: int = 0


class Driver:
    """The actor: one process with a share of the rows."""

    def __init__(
        self, spec: RunSpec, served: Mapping[str, Served], run_dir: Path, name: str, actors: Mapping[str, list[Any]]
    ) -> None:
        self._spec, self._served, self._run_dir, self._name, self._actors = spec, served, run_dir, name, actors
        self._since = Status()
        self._next = Exchange()
        self._failure: BaseException | None = None
        self._news = asyncio.Event()

    async def open(self) -> None:
        """Start the client and the scorers, and open the part file.

        Raises:
            DataError: The run dir can't be seen from here, or not be written.
        """
        if not (self._run_dir / "spec.yaml").is_file():
            import ray

            node = ray.util.get_node_ip_address()
            raise DataError(f"node {node} doesn't see {self._run_dir}: give a run.root that all nodes share")
        logging.getLogger("matrix").addHandler(_Listener(self._since_said))
        logging.getLogger("matrix").setLevel(logging.INFO)
        self._journal = Journal(self._run_dir / "rows", self._name)
        self._workload = Workload(
            self._spec,
            self._served,
            self._emit,
            run_dir=self._run_dir,
            writer=self._name,
            actors=self._actors,
            share=self._spec.workload.drivers,
        )
        await self._workload.__aenter__()

    async def exchange(self, rows: list[Work], *, more: bool) -> Exchange:
        """Take rows in, and wait until there is something to tell.

        Args:
            rows: They are this driver's from now on.
            more: There may be more; without, only what is over is of interest.

        Raises:
            DataError: A row can't be written.
        """
        for work in rows:
            self._workload.pipeline.begin(work, self._over(work))
        while self._failure is None and not self._is_worth_telling(more=more):
            self._news.clear()
            # The room may also grow since the limit does, which nobody tells.
            try:
                await asyncio.wait_for(self._news.wait(), 0.2)
            except TimeoutError:
                continue
            if not more or self._room() < self._bite():
                await asyncio.sleep(_GATHER_S)
        if self._failure is not None:
            raise self._failure
        told, self._next = self._next, Exchange()
        told.room = self._room()
        return told

    async def give(self, most: int) -> None:
        """Have so many rows go on in another driver, as soon as each can."""
        if isinstance(self._workload.pipeline, Team):
            self._workload.pipeline.give(most)

    async def status(self) -> Status:
        """What there is to say since this was last called."""
        now, self._since = self._since, Status()
        now.in_flight, now.size, now.pulse = self._workload.in_flight, self._journal.size, self._workload.pulse
        return now

    async def close_gate(self) -> None:
        """Begin no more rows."""
        self._workload.close_gate()

    async def close(self) -> Status:
        """End it, whatever is under way; the last thing it says."""
        await self._workload.__aexit__(None, None, None)
        self._journal.close()
        return await self.status()

    def _over(self, work: Work) -> Callable[[BaseException | None], None]:
        def over(error: BaseException | None) -> None:
            if isinstance(error, LeavingError):
                self._next.handed_over.append(error.args[0])
            elif error is not None:
                self._failure = error
            else:
                self._next.over.append(work.key)
            self._news.set()

        return over

    def _room(self) -> int:
        return max(0, self._workload.pipeline.capacity - self._workload.pipeline.rows)

    def _bite(self) -> int:
        return max(1, min(_BITE, self._workload.pipeline.capacity // 16))

    def _is_worth_telling(self, *, more: bool) -> bool:
        told = self._next
        if told.handed_over or not self._workload.pipeline.rows:
            return True
        return self._room() >= self._bite() if more else bool(told.over)

    def _emit(self, row: Row) -> None:
        self._journal.append(row)
        self._since.counts.add(row)

    def _since_said(self, level: int, text: str) -> None:
        self._since.said.append((level, f"{self._name}: {text}"))


class _Listener(logging.Handler):
    """Keeps what a driver logs for the process that asks it."""

    def __init__(self, hear: Callable[[int, str], None]) -> None:
        super().__init__(logging.INFO)
        self._hear = hear

    def emit(self, record: logging.LogRecord) -> None:
        self._hear(record.levelno, record.getMessage())
