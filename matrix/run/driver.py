"""One of several processes that share the rows of a run: an actor on the Ray cluster. `drivers` feeds it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matrix.data.journal import Journal
from matrix.data.rows import Row
from matrix.errors import DataError
from matrix.pipelines.generate import Work
from matrix.run.progress import Counts
from matrix.run.session import Served
from matrix.run.workload import Workload
from matrix.spec import RunSpec

Lease = list[Work]
"""Rows that a driver was handed at a time."""


@dataclass
class Status:
    """What a driver says since it was last asked.

    Attributes:
        limit: Requests that it may have in flight.
        in_flight: Those that it has.
        counts: Rows that it finished.
        size: Bytes of its part file, as far as the counts know it.
        said: Records of its log: level and text.
    """

    limit: int = 1
    in_flight: int = 0
    size: int = 0
    counts: Counts = field(default_factory=Counts)
    said: list[tuple[int, str]] = field(default_factory=list)


class Driver:
    """The actor: one process with a share of the rows."""

    def __init__(self, spec: RunSpec, served: Served, run_dir: Path, name: str) -> None:
        self._spec, self._served, self._run_dir, self._name = spec, served, run_dir, name
        self._since = Status()
        self._leases: set[asyncio.Future[Any]] = set()

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
        self._workload = Workload(self._spec, self._served, self._emit, share=self._spec.workload.drivers)
        await self._workload.__aenter__()

    async def work(self, lease: Lease) -> None:
        """Take the rows of a lease to their ends; returns when all are in the part file.

        Raises:
            DataError: A row can't be written.
        """
        rows = asyncio.gather(*(self._workload.pipeline.work_on(example, trial) for example, trial in lease))
        self._leases.add(rows)
        try:
            await rows
        finally:
            self._leases.discard(rows)

    async def status(self) -> Status:
        """What there is to say since this was last called."""
        now, self._since = self._since, Status()
        now.limit, now.in_flight, now.size = self._workload.limit, self._workload.in_flight, self._journal.size
        return now

    async def close_gate(self) -> None:
        """Begin no more rows."""
        self._workload.close_gate()

    async def close(self) -> Status:
        """End it, whatever is under way; the last thing it says."""
        for rows in self._leases:
            rows.cancel()
        await asyncio.gather(*self._leases, return_exceptions=True)
        await self._workload.__aexit__(None, None, None)
        self._journal.close()
        return await self.status()

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
