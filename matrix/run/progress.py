"""How far the workload is: on the terminal, in `metrics.jsonl` and in the tracker."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from io import FileIO

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from matrix.data.rows import Row
from matrix.run.console import Console, log

_REFRESH_S = 0.25


@dataclass
class Counters:
    """Counts of one run; rates are over this start of it, without what was resumed.

    Attributes:
        total: Rows there will be; None where the data set doesn't know its length.
        resumed: Rows that were there when the run started.
    """

    total: int | None
    resumed: int = 0
    ok: int = 0
    errors: int = 0
    in_flight: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    started: float = field(default_factory=time.monotonic)
    first_row_s: float | None = None

    @property
    def done(self) -> int:
        """Rows finished, resumed ones included."""
        return self.resumed + self.ok + self.errors

    @property
    def elapsed_s(self) -> float:
        """Seconds since the workload started."""
        return time.monotonic() - self.started

    def add(self, row: Row) -> None:
        """Count a finished row."""
        if self.first_row_s is None:
            self.first_row_s = self.elapsed_s
        if row.response is None:
            self.errors += 1
            return
        self.ok += 1
        self.prompt_tokens += int(row.response.usage.get("prompt_tokens") or 0)
        self.generated_tokens += int(row.response.usage.get("completion_tokens") or 0)

    def metrics(self) -> dict[str, float]:
        """The counts and rates as one flat record."""
        elapsed = max(self.elapsed_s, 1e-9)
        record: dict[str, float] = {
            "elapsed_s": round(elapsed, 3),
            "rows_done": self.done,
            "rows_ok": self.ok,
            "rows_error": self.errors,
            "in_flight": self.in_flight,
            "rows_per_s": round((self.ok + self.errors) / elapsed, 3),
            "prompt_tokens": self.prompt_tokens,
            "generated_tokens": self.generated_tokens,
            "generated_tokens_per_s": round(self.generated_tokens / elapsed, 2),
        }
        return record if self.total is None else {**record, "rows_total": self.total}

    def line(self) -> str:
        """The counts as a log line."""
        now = self.metrics()
        finished = self.ok + self.errors
        eta = ""
        if self.total is not None and finished:
            eta = f", {(self.total - self.done) * self.elapsed_s / finished:.0f} s left"
        total = "?" if self.total is None else self.total
        return (
            f"rows {self.done}/{total}, {now['rows_per_s']:.1f} rows/s, {now['generated_tokens_per_s']:.0f} tokens/s, "
            f"{self.in_flight} in flight, {self.errors} errors{eta}"
        )


@asynccontextmanager
async def reported(
    counters: Counters, console: Console, metrics: FileIO, track: Callable[[dict[str, float]], None], every_s: float
) -> AsyncIterator[None]:
    """Report the counters while the block runs, and once more at its end."""

    def record() -> None:
        now = counters.metrics()
        # On a full disk it is the journal that stops the run, with what there is to say about the rows.
        with suppress(OSError):
            line = json.dumps({"time": time.time(), **now}).encode() + b"\n"
            written = metrics.write(line) or 0
            if written < len(line):
                # The next record would be the rest of this line.
                metrics.truncate(metrics.tell() - written)
        track(now)

    async def periodically() -> None:
        while True:
            await asyncio.sleep(every_s)
            record()
            if not console.interactive:
                log.info("%s", counters.line())

    tasks = [asyncio.create_task(periodically())]
    if console.interactive:
        tasks.append(asyncio.create_task(_live(counters, console)))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        record()
        log.info("%s", counters.line())


async def _live(counters: Counters, console: Console) -> None:
    columns = (
        TextColumn("rows"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console.rich, transient=True) as progress:
        bar = progress.add_task("", total=counters.total, completed=counters.done)
        while True:
            now = counters.metrics()
            text = (
                f"{now['rows_per_s']:.1f} rows/s  {now['generated_tokens_per_s']:.0f} tokens/s  "
                f"{counters.in_flight} in flight  {counters.errors} errors  left"
            )
            progress.update(bar, completed=counters.done, description=text)
            await asyncio.sleep(_REFRESH_S)
