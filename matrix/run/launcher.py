"""Sweeps whose jobs have an allocation of their own each, by Hydra's launchers `submitit_slurm` and `submitit_local`.

Hydra's launcher submits the jobs and waits for them, but raises at the first one that failed while others still run,
and takes a run that failed for one that went well (hydra#1928). What came of the jobs is therefore read from what they
left: `state.json` of their run dirs, and submitit's own results for those that never got so far.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from matrix.errors import ClusterError, ConfigError, MatrixError, Problem
from matrix.run.execute import Outcome
from matrix.run.jobs import show_jobs
from matrix.run.state import RunState
from matrix.run.stop import NOTICES, Interrupted
from matrix.spec import RunSpec, SlurmCluster

_LOOK_S = 1.0
_FOLLOW_S = 5.0


def refuse_slurm(specs: Iterable[RunSpec]) -> None:
    """Refuse a job in an allocation of its own that wants a cluster of several.

    Raises:
        ConfigError: With the way out.
    """
    if any(isinstance(spec.cluster, SlurmCluster) for spec in specs):
        way_out = "cluster=local is Ray on the job's node; without hydra/launcher all jobs share one cluster on Slurm"
        problem = Problem("cluster", "slurm", "hydra/launcher gives each job an allocation of its own already", way_out)
        raise ConfigError([problem], "The sweep has problems; none of its jobs was submitted.")


@dataclass(frozen=True)
class _Job:
    """A job that was submitted: `id` is the scheduler's, `number` the sweep's."""

    id: str
    number: int
    log: Path
    is_local: bool
    submitted: Any
    """submitit's."""

    def wait(self) -> None:
        """Wait until it is over, through all its requeues."""
        if self.is_local:
            # submitit knows a local job by its process object, which the launcher took along.
            while _is_child(int(self.id)):
                time.sleep(_LOOK_S)
        else:
            self.submitted.wait()

    def why_not_started(self) -> tuple[int, str]:
        """Exit code and reason of a job that never took its run dir."""
        from submitit.core.utils import FailedJobError, UncompletedJobError

        try:
            result = self.submitted.results()[0]
        except UncompletedJobError:
            return 1, f"it ended before its run began{self.said}"
        except FailedJobError as error:
            return 1, str(error).rpartition("\n-----")[0].splitlines()[-1]
        # Not `return_value`, which would raise it and print more.
        refused = result._return_value  # noqa: SLF001
        return (refused.exit_code if isinstance(refused, MatrixError) else 1), str(refused)

    @property
    def said(self) -> str:
        """What Slurm says of it."""
        return "" if self.is_local else f" (Slurm: {self.submitted.get_info().get('State', 'nothing')})"


class Launch:
    """One launch of a sweep: submit, wait for all, and read what came of them.

    Args:
        executor: submitit's.
        folder: submitit's folder of a job, with `%j` for its id.
        sweep_dir: Folder of the sweep.
        expected: How many jobs there will be; None if only the sweeper knows.
        resume: The command line that goes on with the sweep.
    """

    def __init__(self, executor: str, folder: Path, sweep_dir: Path, expected: int | None, resume: str) -> None:
        self._executor = executor
        self._folder = folder
        self._sweep_dir = sweep_dir
        self._expected = expected
        self._resume = resume
        self._earlier = {path.name for path in self._pickles()}
        # A sweep that is resumed has states of its last launch.
        states = sweep_dir.glob("[0-9]*/state.json")
        self._starts = {int(state.parent.name): _starts(state.parent) for state in states}

    def run(self, submit: Callable[[], object]) -> int:
        """Run it; returns the worst job's exit code.

        Args:
            submit: Hydra's own way, which also waits, but not for all.

        Raises:
            ClusterError: Slurm refuses the jobs.
            KeyboardInterrupt: The user is tired of waiting; the jobs go on.
        """
        number = "jobs" if self._expected is None else f"{self._expected} jobs"
        _say(f"{number} of submitit_{self._executor} in {self._sweep_dir}; logs in {self._logs()}")
        try:
            with self._followed():
                try:
                    submit()
                except Exception as error:
                    # Most likely that of the first job that failed; all jobs are looked at below.
                    if not self._submitted():
                        raise _submission_error(self._executor, error) from error
                jobs = self._submitted()
                for job in jobs:
                    job.wait()
        except KeyboardInterrupt:
            self._say_how_to_cancel()
            raise
        return self._show({job.number: job for job in jobs})

    @contextmanager
    def _followed(self) -> Iterator[None]:
        """Say how the jobs are, whenever that has changed, for as long as the block goes."""
        over = threading.Event()

        def follow() -> None:
            said = ""
            while not over.wait(_FOLLOW_S):
                counted = Counter(map(self._word, range(self._expected or len(self._pickles()))))
                if (text := ", ".join(f"{number} {word}" for word, number in counted.items())) != said:
                    _say(f"{time.strftime('%H:%M:%S')} jobs: {text}")
                    said = text

        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        try:
            yield
        finally:
            over.set()
            follower.join()

    def _word(self, number: int) -> str:
        state = RunState.of_run(self._sweep_dir / str(number))
        return state.word if state and state.starts > self._starts.get(number, 0) else "waiting"

    def _logs(self) -> Path:
        return Path(str(self._folder).partition("%")[0])

    def _pickles(self) -> list[Path]:
        pattern = self._folder.name.replace("%j", "*")
        return sorted(self._folder.parent.glob(f"{pattern}/*_submitted.pkl"))

    def _submitted(self) -> list[_Job]:
        """The jobs of this launch, as submitit wrote them down."""
        import submitit
        from submitit.core.utils import DelayedSubmission

        kind = submitit.SlurmJob if self._executor == "slurm" else submitit.LocalJob
        jobs = []
        for path in self._pickles():
            if path.name not in self._earlier:
                job = kind(self._folder, path.name.removesuffix("_submitted.pkl"))
                # What the launcher is called with: overrides, key, number, ...
                number = DelayedSubmission.load(path).args[2]
                jobs.append(_Job(job.job_id, number, job.paths.stderr, self._executor == "local", job))
        return jobs

    def _show(self, jobs: dict[int, _Job]) -> int:
        """List the jobs and why some failed; returns the worst exit code."""
        numbers = sorted(jobs) if self._expected is None else range(self._expected)
        outcomes, reasons = [], []
        for number in numbers:
            run_dir = self._sweep_dir / str(number)
            exit_code, reason = self._what_came_of(run_dir, jobs.get(number))
            outcomes.append(Outcome(run_dir, exit_code, _summary(run_dir)))
            if exit_code:
                log = f" (log: {jobs[number].log})" if number in jobs else ""
                reasons.append(f"job {number}: {reason}{log}")
        show_jobs(outcomes)
        for reason in reasons:
            _say(reason)
        return max((outcome.exit_code for outcome in outcomes), default=1)

    def _what_came_of(self, run_dir: Path, job: _Job | None) -> tuple[int, str]:
        if job is None:
            return 1, "it was never submitted"
        state = RunState.of_run(run_dir)
        if state is None or state.starts <= self._starts.get(job.number, 0):
            return job.why_not_started()
        if state.exit_code is None:
            return 1, f"its process was killed{job.said}"
        return state.exit_code, f"{state.status}: {state.detail}"

    def _say_how_to_cancel(self) -> None:
        ids = list(dict.fromkeys(job.id.partition("_")[0] for job in self._submitted()))
        if ids:
            command = "scancel" if self._executor == "slurm" else "kill"
            _say(f"\nThe jobs go on, and write to {self._sweep_dir}. Cancel them with:")
            _say(f"  {command} {' '.join(ids)}")
        _say(f"\nOnce they have ended, resume with:\n  {self._resume}")


def end_job(stopped: Interrupted, run_dir: Path) -> NoReturn:
    """End a job that was stopped: at the notice that its time is over, submitit's own handler has it requeued.

    Raises:
        SystemExit: Always, unless the handler says why the job isn't requeued.
    """
    handler = signal.getsignal(stopped.number)
    if stopped.number in NOTICES and callable(handler):
        try:
            handler(stopped.number, None)
        except SystemExit:
            _amend(run_dir, status="requeued")
            raise
        except Exception as error:
            _amend(run_dir, detail=f"{stopped}: {error}")
            raise
    sys.exit(stopped.exit_code)


def _submission_error(executor: str, error: Exception) -> Exception:
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    if isinstance(error, FailedJobError | FailedSubmissionError):
        return ClusterError(f"submitit_{executor} can't submit the jobs:\n{str(error).strip()}")
    return error


def _amend(run_dir: Path, **fields: Any) -> None:
    state = RunState.of_run(run_dir)
    if state is not None:
        replace(state, **fields).write_to(run_dir)


def _starts(run_dir: Path) -> int:
    state = RunState.of_run(run_dir)
    return state.starts if state else 0


def _summary(run_dir: Path) -> dict[str, Any] | None:
    path = run_dir / "summary.json"
    found: dict[str, Any] | None = json.loads(path.read_text()) if path.is_file() else None
    return found


def _is_child(pid: int) -> bool:
    """Whether a child of this process still runs."""
    try:
        return os.waitpid(pid, os.WNOHANG) == (0, 0)
    except ChildProcessError:
        return False


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
