"""Execute one spec: the life cycle of a run, from an opened run dir to a summary."""

from __future__ import annotations

import asyncio
import os
import shlex
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matrix.client.concurrency import AdaptiveLimit
from matrix.client.endpoints import Endpoints
from matrix.client.gate import Gate
from matrix.client.http import ModelClient
from matrix.client.rates import Rates
from matrix.data.journal import Journal
from matrix.data.parts import DoneKeys, done_keys
from matrix.data.readers import Dataset, load
from matrix.data.rows import Row
from matrix.data.sorting import read_rows, write_sorted
from matrix.errors import MatrixError
from matrix.models.source import ResolvedModel, resolve
from matrix.pipelines.generate import Generate, open_work
from matrix.pipelines.metrics import summarise
from matrix.pipelines.scoring_pool import ScoringPool
from matrix.run.console import Console, log
from matrix.run.environment import describe_environment
from matrix.run.progress import Counters, reported
from matrix.run.report import show_summary
from matrix.run.rundir import RunDir
from matrix.run.session import Served, Session, check_launch
from matrix.run.stop import Interrupted, run_async
from matrix.spec import RunSpec, VllmEngine
from matrix.spec.redact import redact, redact_arguments
from matrix.tracking.tracker import JobInfo, Tracker, make_tracker


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    Attributes:
        run_dir: Its folder.
        exit_code: 0; 1 if it failed or no row has an answer.
        summary: What `summary.json` holds; None if the run didn't get that far.
    """

    run_dir: Path
    exit_code: int
    summary: dict[str, Any] | None


def execute(spec: RunSpec, run_dir: RunDir, session: Session, console: Console, command: list[str]) -> Outcome:
    """Run one experiment.

    Args:
        spec: The checked spec.
        run_dir: Where it writes; one that holds a run already is resumed.
        session: Cluster and engine, shared with the jobs before and after.
        console: What the user sees.
        command: The command line, for the record; secrets are redacted.

    Returns:
        The outcome, also of a run that failed: the reason is in the log.

    Raises:
        ClusterError, AppError: This version can't launch such a cluster or engine.
        ConfigError: The run dir was made by a different spec.
        Interrupted: The process was asked to stop; rows so far are kept.
    """
    check_launch(spec)
    run_dir.open(spec)
    with console.log_to(run_dir.path / "run.log"):
        log.info("%s %s", "Resuming" if run_dir.resumed else "Run dir", run_dir.path)
        tracker = make_tracker(spec.tracker)
        summary: dict[str, Any] | None = None
        exit_code = 1
        try:
            summary = _Run(spec, run_dir, session, console, tracker, redact_arguments(command)).execute()
            exit_code = 0 if summary["rows"]["ok"] or not summary["rows"]["total"] else 1
        except Interrupted as stopped:
            exit_code = stopped.exit_code
            log.warning("Stopped by %s; the rows so far are kept", stopped)
            raise
        except MatrixError as error:
            exit_code = error.exit_code
            log.error("%s", error)
            log.debug("traceback", exc_info=True)
        except Exception:  # noqa: BLE001 - an error of ours must not take the other jobs of a sweep along
            log.exception("The run failed; this is an error of matrix itself, its traceback is in run.log")
        finally:
            rows_file = run_dir.path / "rows.jsonl"
            tracker.finish(summary or {}, exit_code, rows_file if rows_file.is_file() else None)
            notice = tracker.notice()
            if notice:
                log.info("%s", notice)
        return Outcome(run_dir.path, exit_code, summary)


def _scoring_workers() -> int:
    """Processes for scorers that need their own: SymPy takes about 0.1 s for a wrong answer."""
    return min(16, max(1, (os.cpu_count() or 1) // 4))


class _Run:
    def __init__(
        self,
        spec: RunSpec,
        run_dir: RunDir,
        session: Session,
        console: Console,
        tracker: Tracker,
        command: list[str],
    ) -> None:
        self._spec = spec
        self._dir = run_dir
        self._session = session
        self._console = console
        self._tracker = tracker
        self._command = command
        self._began = time.monotonic()

    def execute(self) -> dict[str, Any]:
        with self._console.stage(f"Reading data set {self._spec.dataset.name}"):
            dataset = load(self._spec.dataset)
        source = self._resolve_model()
        with Journal(self._dir.rows, "driver") as journal:
            # Only the one that holds the journal may write to the run dir.
            self._dir.write_environment(self._environment(dataset, source))
            self._start_tracker()
            done = done_keys(self._dir.rows)
            total = None if dataset.total is None else dataset.total * self._spec.trials
            counters = Counters(total, resumed=len(done))
            served: Served | None = None
            if total is None or len(done) < total:
                served = self._session.serve(self._spec, source, self._dir.path)
                counters.started = time.monotonic()
                run_async(self._work(dataset, done, served, journal, counters))
            else:
                log.info("All %d rows are there; nothing is asked for again", total)
        return self._summarise(counters, served)

    def _resolve_model(self) -> ResolvedModel | None:
        if not isinstance(self._spec.engine, VllmEngine):
            return None
        with self._console.stage(f"Finding model {self._spec.model.source}") as stage:

            def say(detail: str) -> None:
                log.info("%s", detail)
                stage.detail = detail

            return resolve(self._spec.model.source, say)

    def _environment(self, dataset: Dataset, source: ResolvedModel | None) -> dict[str, Any]:
        model = {"source": self._spec.model.source, "revision": None, "checksum": None}
        if source is not None:
            model |= {"path": source.path, "revision": source.revision, "checksum": source.checksum}
        data = {"source": self._spec.dataset.path or self._spec.dataset.hub, "fingerprint": dataset.fingerprint}
        return describe_environment(self._command, model, data)

    def _start_tracker(self) -> None:
        info = JobInfo(
            name=f"{self._spec.name}/{self._dir.run_id}",
            run_id=self._dir.run_id,
            run_dir=self._dir.path,
            sweep_id=self._dir.sweep_id,
            job_type=self._spec.pipeline.name,
            config=redact(self._spec.model_dump(mode="json")),
            tags=(self._spec.model.name, self._spec.pipeline.name),
            command=shlex.join(self._command),
        )
        self._tracker.start(info)

    async def _work(
        self, dataset: Dataset, done: DoneKeys, served: Served, journal: Journal, counters: Counters
    ) -> None:
        workload = self._spec.workload
        said: set[str] = set()

        def emit(row: Row) -> None:
            journal.append(row)
            counters.add(row)
            if row.error is not None and row.error.type not in said:
                said.add(row.error.type)
                more = "others of this type are only in the rows"
                log.warning("Row %s failed, %s: %s (%s)", row.id, row.error.type, row.error.message, more)

        def flying(change: int) -> None:
            counters.in_flight += change

        def track(metrics: dict[str, float]) -> None:
            self._tracker.log(metrics, int(metrics["rows_done"]))

        endpoints = Endpoints(served.urls, refresh=self._refresh())
        scoring = ScoringPool(self._spec.pipeline.scorers, workers=_scoring_workers())
        limits = workload.concurrency
        gate = Gate(
            AdaptiveLimit(start=limits.start, minimum=limits.min, maximum=limits.max),
            Rates(workload.requests_per_minute, workload.tokens_per_minute),
        )
        client = ModelClient(
            endpoints,
            api_key=served.api_key,
            timeout_s=workload.request_timeout_s,
            max_attempts=workload.max_attempts,
            try_timeout_s=workload.try_timeout_s,
            gate=gate,
        )
        with self._dir.open_metrics() as metrics:
            async with (
                client,
                scoring,
                reported(counters, self._console, metrics, track, workload.progress_every_s),
            ):
                await Generate(self._spec, client, scoring, emit, flying).run(
                    open_work(dataset, self._spec.trials, done)
                )

    def _refresh(self) -> Callable[[], Awaitable[list[str]]] | None:
        if not isinstance(self._spec.engine, VllmEngine):
            return None

        async def refresh() -> list[str]:
            return await asyncio.to_thread(self._session.urls)

        return refresh

    def _sampled(self) -> Iterator[Row]:
        """All rows, those of earlier starts too; the tracker sees each on the way."""
        for row in read_rows(self._dir.rows):
            self._tracker.sample(row)
            yield row

    def _summarise(self, counters: Counters, served: Served | None) -> dict[str, Any]:
        write_sorted(self._dir.rows, self._dir.path / "rows.jsonl")
        labels = [scorer.label for scorer in self._spec.pipeline.scorers]
        found = summarise(self._sampled(), labels).to_dict()
        metrics = counters.metrics()
        time_s = {
            "total": round(time.monotonic() - self._began, 3),
            "until_ready": round(served.waited_s, 3) if served else 0.0,
            "engine_start": round(served.engine_s, 3) if served else 0.0,
            "first_row": round(counters.first_row_s, 3) if counters.first_row_s is not None else None,
            "workload": metrics["elapsed_s"] if served else 0.0,
        }
        speed = {
            "rows_per_s": metrics["rows_per_s"] if served else 0.0,
            "generated_tokens_per_s": metrics["generated_tokens_per_s"] if served else 0.0,
        }
        summary = {**found, "time_s": time_s, "speed": speed, "resumed_rows": counters.resumed}
        self._dir.write_summary(summary)
        show_summary(self._spec.name, self._dir.path, summary)
        return summary
