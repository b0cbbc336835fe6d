"""How far the workload is: on the terminal, in `metrics.jsonl` and in the tracker."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from io import FileIO

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from matrix.agents.pulse import Pulse
from matrix.data.rows import AgentRow, Row
from matrix.run.console import Console, log
from matrix.spec import Price

_REFRESH_S = 0.25


@dataclass
class Counts:
    """What came of some rows. Sums, so that those of several processes add up.

    Attributes:
        cost_usd: Of a team's rows, which know it; None: it follows from the tokens.
        failures: What to say of the first row with an error, by type of error.
    """

    ok: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    generated_tokens: int = 0
    cost_usd: float | None = None
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows with an answer or an error."""
        return self.ok + self.errors

    def add(self, row: Row) -> None:
        """Count a finished row."""
        if row.error is not None:
            self.errors += 1
            self.failures.setdefault(row.error.type, f"Row {row.id} failed, {row.error.type}: {row.error.message}")
        self.ok += row.status == "ok"
        if isinstance(row, AgentRow):
            self.cost_usd = (self.cost_usd or 0.0) + row.cost_usd
        usage = row.usage
        self.prompt_tokens += int(usage.get("prompt_tokens") or 0)
        self.cached_prompt_tokens += int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
        self.generated_tokens += int(usage.get("completion_tokens") or 0)

    def merge(self, other: Counts) -> None:
        """Count what another process counted."""
        for name in ("ok", "errors", "prompt_tokens", "cached_prompt_tokens", "generated_tokens"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        if other.cost_usd is not None:
            self.cost_usd = (self.cost_usd or 0.0) + other.cost_usd
        for kind, said in other.failures.items():
            self.failures.setdefault(kind, said)

    def usd(self, price: Price) -> float:
        """What the rows cost."""
        if self.cost_usd is not None:
            return self.cost_usd
        return price.usd(self.prompt_tokens, self.cached_prompt_tokens, self.generated_tokens)


@dataclass
class Progress:
    """How far one run is; rates are over this start of it, without what was resumed.

    Attributes:
        total: Rows there will be; None where the data set doesn't know its length.
        price: What tokens cost.
        role_prices: The same for a team's roles, where it is known.
        resumed: Rows that were there when the run started.
        in_flight: Tells how many requests are with a server now.
        pulse: Tells how the team is doing; None without one.
        counts: Rows of this start.
    """

    total: int | None
    price: Price
    role_prices: Mapping[str, Price] = field(default_factory=dict)
    resumed: int = 0
    in_flight: Callable[[], int] = lambda: 0
    pulse: Callable[[], Pulse | None] = lambda: None
    counts: Counts = field(default_factory=Counts)
    started: float = field(default_factory=time.monotonic)
    first_row_s: float | None = None
    _said: int = 0

    @property
    def is_priced(self) -> bool:
        """Whether it is known what the rows cost."""
        return self.price.is_known or bool(self.role_prices)

    @property
    def done(self) -> int:
        """Rows finished, resumed ones included."""
        return self.resumed + self.counts.rows

    @property
    def elapsed_s(self) -> float:
        """Seconds since the workload started."""
        return time.monotonic() - self.started

    def add(self, row: Row) -> None:
        """Count a finished row; the first error of each type is said."""
        self.counts.add(row)
        self._counted()

    def merge(self, counts: Counts) -> None:
        """Count what another process counted."""
        self.counts.merge(counts)
        if counts.rows:
            self._counted()

    def metrics(self) -> dict[str, float]:
        """The counts and rates as one flat record."""
        elapsed, counts = max(self.elapsed_s, 1e-9), self.counts
        record: dict[str, float] = {
            "elapsed_s": round(elapsed, 3),
            "rows_done": self.done,
            "rows_ok": counts.ok,
            "rows_error": counts.errors,
            "in_flight": self.in_flight(),
            "rows_per_s": round(counts.rows / elapsed, 3),
            "prompt_tokens": counts.prompt_tokens,
            "generated_tokens": counts.generated_tokens,
            "generated_tokens_per_s": round(counts.generated_tokens / elapsed, 2),
        }
        if self.is_priced:
            record["cost_usd"] = round(counts.usd(self.price), 6)
        pulse = self.pulse()
        if pulse is not None:
            record |= pulse.metrics(elapsed, self.role_prices)
        return record if self.total is None else {**record, "rows_total": self.total}

    def line(self) -> str:
        """The counts as a log line."""
        now = self.metrics()
        finished = self.counts.rows
        eta = ""
        if self.total is not None and finished:
            eta = f", {(self.total - self.done) * self.elapsed_s / finished:.0f} s left"
        total = "?" if self.total is None else self.total
        pulse = self.pulse()
        team = f"; {pulse.line(self.elapsed_s)}" if pulse is not None else ""
        return (
            f"rows {self.done}/{total}, {now['rows_per_s']:.1f} rows/s, {now['generated_tokens_per_s']:.0f} tokens/s, "
            f"{self.in_flight()} in flight, {self.counts.errors} errors{self.cost()}{eta}{team}"
        )

    def cost(self) -> str:
        """What the rows of this start cost, as a part of a line; empty without a price."""
        return f", {self.counts.usd(self.price):.2f} USD" if self.is_priced else ""

    def _counted(self) -> None:
        if self.first_row_s is None:
            self.first_row_s = self.elapsed_s
        if len(self.counts.failures) > self._said:
            for said in list(self.counts.failures.values())[self._said :]:
                log.warning("%s (others of this type are only in the rows)", said)
            self._said = len(self.counts.failures)


@asynccontextmanager
async def reported(
    progress: Progress, console: Console, metrics: FileIO, track: Callable[[dict[str, float]], None], every_s: float
) -> AsyncIterator[None]:
    """Report the progress while the block runs, and once more at its end."""

    def record() -> None:
        now = progress.metrics()
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
                log.info("%s", progress.line())

    tasks = [asyncio.create_task(periodically())]
    if console.interactive:
        tasks.append(asyncio.create_task(_live(progress, console)))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        record()
        log.info("%s", progress.line())


async def _live(progress: Progress, console: Console) -> None:
    columns = (
        TextColumn("rows"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=console.rich, transient=True) as shown:
        bar = shown.add_task("", total=progress.total, completed=progress.done)
        while True:
            now = progress.metrics()
            text = (
                f"{now['rows_per_s']:.1f} rows/s  {now['generated_tokens_per_s']:.0f} tokens/s  "
                f"{progress.in_flight()} in flight  {progress.counts.errors} errors{progress.cost()}  left"
            )
            if (pulse := progress.pulse()) is not None:
                text += f"\n{pulse.line(progress.elapsed_s)}"
            shown.update(bar, completed=progress.done, description=text)
            await asyncio.sleep(_REFRESH_S)
