"""Execute one spec: the life cycle of a run, from an opened run dir to a summary."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matrix.agents.actors import end_roles, start_roles
from matrix.agents.attempts import PastAttempts
from matrix.agents.steps import remove_steps
from matrix.data.journal import Journal
from matrix.data.parts import done_keys
from matrix.data.readers import Dataset, load
from matrix.data.rows import Row
from matrix.data.sorting import read_rows, write_sorted
from matrix.data.work import Work, open_work
from matrix.errors import MatrixError
from matrix.models.source import ResolvedModel, resolve
from matrix.pipelines.metrics import summarise
from matrix.run.budget import BUDGET_EXIT_CODE, Budget
from matrix.run.console import Console, Stage, log
from matrix.run.drivers import Drivers
from matrix.run.environment import describe_environment
from matrix.run.exported import exporter
from matrix.run.progress import Progress, reported
from matrix.run.report import show_summary
from matrix.run.rundir import RunDir
from matrix.run.session import Served, Session
from matrix.run.state import kept_state
from matrix.run.stop import Interrupted, run_async
from matrix.run.workload import Workload
from matrix.spec import RunSpec, SglangEngine, VllmEngine
from matrix.spec.redact import redact, redact_arguments
from matrix.tracking.tracker import JobInfo, Tracker, make_tracker


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    Attributes:
        run_dir: Its folder.
        exit_code: 0; 1 if it failed or no row has an answer; 3 if the budget ended it.
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
        ConfigError: The run dir was made by a different spec.
        Interrupted: The process was asked to stop; rows so far are kept.
    """
    run_dir.open(spec)
    with console.log_to(run_dir.path / "run.log"):
        log.info("%s %s", "Resuming" if run_dir.resumed else "Run dir", run_dir.path)
        tracker = make_tracker(spec.tracker)
        summary: dict[str, Any] | None = None
        exit_code = 1
        try:
            # Only the one that holds the journal may write to the run dir.
            with Journal(run_dir.rows, "driver") as journal, kept_state(run_dir) as state:
                run = _Run(spec, run_dir, session, console, tracker, redact_arguments(command))
                summary = run.execute(journal)
                exit_code = state.exit_code = _exit_code(summary)
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
            rows_file = run_dir.all_rows(spec.run.rows)
            tracker.finish(summary or {}, exit_code, rows_file if rows_file.is_file() else None)
            notice = tracker.notice()
            if notice:
                log.info("%s", notice)
        return Outcome(run_dir.path, exit_code, summary)


def _exit_code(summary: dict[str, Any]) -> int:
    if summary["stopped"]:
        return BUDGET_EXIT_CODE
    return 0 if summary["rows"]["ok"] or not summary["rows"]["total"] else 1


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

    def execute(self, journal: Journal) -> dict[str, Any]:
        with self._console.stage(f"Reading data set {self._spec.dataset.name}"):
            dataset = load(self._spec.dataset)
        sources = self._resolve_models()
        source = sources.get(self._spec.main_app)
        self._dir.write_environment(self._environment(dataset, source))
        if self._spec.agents is not None and self._spec.agents.file is not None:
            self._dir.keep_agents(Path(self._spec.agents.file).expanduser())
        self._start_tracker()
        done = done_keys(self._dir.rows, retry_errors=self._spec.workload.retry_errors)
        total = None if dataset.total is None else dataset.total * self._spec.trials
        progress = Progress(total, self._spec.model.price, self._spec.role_prices, resumed=len(done))
        budget = Budget(self._spec, self._dir.rows)
        served: dict[str, Served] = {}
        if budget.is_spent:
            log.info("Nothing is asked for")
        elif total is None or len(done) < total:
            self._dir.drop_results()
            served = self._session.serve(self._spec, sources, self._dir.path)
            progress.started = time.monotonic()
            work = open_work(dataset, self._spec.trials, done)
            run_async(self._work(work, served, journal, progress, budget))
            journal.sync()
        else:
            log.info("All %d rows are there; nothing is asked for again", total)
        if not budget.is_spent:
            remove_steps(self._dir.steps)
        # The budget may have been spent with the very last row.
        stopped = budget.is_spent and (total is None or progress.done < total)
        return self._summarise(progress, served.get(self._spec.main_app), stopped=stopped)

    def _resolve_models(self) -> dict[str, ResolvedModel]:
        """Weights of all apps that load some."""
        found = {}
        for name, app in self._spec.all_apps().items():
            source = app.model.source
            if not isinstance(app.engine, VllmEngine | SglangEngine) or source is None:
                continue
            with self._console.stage(f"Finding model {source}") as stage:

                def say(detail: str, stage: Stage = stage) -> None:
                    log.info("%s", detail)
                    stage.detail = detail

                found[name] = resolve(source, say)
        return found

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
            job_type=self._spec.workload_name,
            config=redact(self._spec.model_dump(mode="json")),
            tags=(self._spec.model.name, self._spec.workload_name),
            command=shlex.join(self._command),
        )
        self._tracker.start(info)

    async def _work(
        self, work: Iterator[Work], served: Mapping[str, Served], journal: Journal, progress: Progress, budget: Budget
    ) -> None:
        spec = self._spec
        export = exporter(spec.name, self._dir.run_id, progress)

        def track(metrics: dict[str, float]) -> None:
            self._tracker.log(metrics, int(metrics["rows_done"]))
            export(metrics)

        actors = start_roles(spec, self._dir.path)
        try:
            with self._dir.open_metrics() as metrics:
                async with reported(progress, self._console, metrics, track, spec.workload.progress_every_s):
                    if spec.workload.drivers > 1:
                        past = self._past_attempts()
                        await Drivers(spec, served, self._dir.path, progress, budget, past, actors).run(work)
                    else:
                        await self._alone(work, served, journal, progress, budget, actors)
        finally:
            end_roles(actors)

    async def _alone(
        self,
        work: Iterator[Work],
        served: Mapping[str, Served],
        journal: Journal,
        progress: Progress,
        budget: Budget,
        actors: Mapping[str, list[Any]],
    ) -> None:
        def emit(row: Row) -> None:
            journal.append(row)
            progress.add(row)
            if budget.spend(progress.counts, max(workload.in_flight, workload.pipeline.rows)):
                workload.close_gate()

        past = self._past_attempts()
        workload = Workload(self._spec, served, emit, run_dir=self._dir.path, writer="driver", actors=actors)
        progress.in_flight = lambda: workload.in_flight
        if self._spec.agents is not None:
            progress.pulse = lambda: workload.pulse
        async with workload:
            await workload.pipeline.run(map(past.resumed, work))

    def _past_attempts(self) -> PastAttempts:
        """What earlier starts left of rows that aren't finished."""
        return PastAttempts(self._dir.steps, self._spec.workload.max_attempts, done_keys(self._dir.rows))

    def _sampled(self) -> Iterator[Row]:
        """All rows, those of earlier starts too; the tracker sees each on the way."""
        for row in read_rows(self._dir.rows):
            self._tracker.sample(row)
            yield row

    def _summarise(self, progress: Progress, served: Served | None, *, stopped: bool) -> dict[str, Any]:
        # Now: what follows is not the workload's time.
        metrics = progress.metrics()
        with self._console.stage("Writing all rows in order and summing up"):
            write_sorted(self._dir.rows, self._dir.all_rows(self._spec.run.rows))
            self._dir.drop_results(but=self._spec.run.rows)
            scorers = self._spec.scorers
            pass_at = {scorer.label: scorer.pass_at for scorer in scorers if scorer.pass_at is not None}
            totals = summarise(self._sampled(), [scorer.label for scorer in scorers], pass_at)
        time_s = {
            "total": round(time.monotonic() - self._began, 3),
            "until_ready": round(served.waited_s, 3) if served else 0.0,
            "engine_start": round(served.engine_s, 3) if served else 0.0,
            "first_row": round(progress.first_row_s, 3) if progress.first_row_s is not None else None,
            "workload": metrics["elapsed_s"] if served else 0.0,
        }
        speed = {
            "rows_per_s": metrics["rows_per_s"] if served else 0.0,
            "generated_tokens_per_s": metrics["generated_tokens_per_s"] if served else 0.0,
        }
        price = self._spec.model.price
        tokens = totals.prompt_tokens, totals.cached_prompt_tokens, totals.completion_tokens
        cost_usd = totals.team.cost_usd if totals.team else price.usd(*tokens)
        summary = {
            **totals.to_dict(progress.role_prices),
            "cost_usd": round(cost_usd, 6) if progress.is_priced else None,
            "stopped": "budget" if stopped else None,
            "time_s": time_s,
            "speed": speed,
            "resumed_rows": progress.resumed,
        }
        self._dir.write_summary(summary)
        show_summary(self._spec.name, self._dir.path, summary)
        return summary
