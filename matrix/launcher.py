"""Sweeps whose jobs have an allocation of their own each, by Hydra's launchers `submitit_slurm` and `submitit_local`.

Hydra's launcher submits the jobs and waits for them, but raises at the first one that failed while others still run,
and takes a run that failed for one that went well (hydra#1928). What came of the jobs is therefore read from what they
left: `state.json` of their run dirs, and submitit's own results for those that never got so far.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from matrix.compose import CONFIG_DIR, open_mappings
from matrix.errors import ClusterError, ConfigError, MatrixError, Problem
from matrix.run.execute import Outcome
from matrix.run.jobs import show_jobs
from matrix.run.state import RunState
from matrix.run.stop import NOTICES, Interrupted
from matrix.spec import RunSpec, SlurmCluster

_PLUGIN = "hydra_plugins.hydra_submitit_launcher."
_BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
_PLAIN = re.compile(r"[\w./+-]+")
"""A path that Hydra takes without quotes."""
_LOOK_S = 1.0


@dataclass(frozen=True)
class Launcher:
    """Where the jobs of a sweep go.

    Attributes:
        name: What the user called it.
        executor: submitit's.
        folder: submitit's folder of a job, with `%j` for its id.
        sweep_dir: Folder of the sweep, absolute: no job works it out for itself.
        knows_jobs: The jobs are all combinations of the command line, not what a sweeper finds on its way.
    """

    name: str
    executor: str
    folder: Path
    sweep_dir: Path
    knows_jobs: bool

    @property
    def override(self) -> str:
        """What the jobs have to be told."""
        path = str(self.sweep_dir)
        if not _PLAIN.fullmatch(path):
            path = "'" + path.replace("'", r"\'") + "'"
        return f"hydra.sweep.dir={path}"


def find_launcher(overrides: Sequence[str]) -> Launcher | None:
    """The launcher of submitit that a sweep asks for; None for any other."""
    parsed = OverridesParser.create().parse_overrides(open_mappings(overrides))
    fixed = [override.input_line or "" for override in parsed if not override.is_sweep_override()]
    with initialize_config_dir(config_dir=CONFIG_DIR, version_base="1.3", job_name="matrix"):
        cfg = compose("config", overrides=fixed, return_hydra_config=True)
        hydra = cfg.hydra
        if not str(hydra.launcher._target_).startswith(_PLUGIN):
            return None
        executor = "slurm" if str(hydra.launcher._target_).endswith("SlurmLauncher") else "local"
        return Launcher(
            name=f"submitit_{executor}",
            executor=executor,
            folder=Path(hydra.launcher.submitit_folder).expanduser().absolute(),
            sweep_dir=Path(hydra.sweep.dir).expanduser().absolute(),
            knows_jobs=hydra.sweeper._target_ == _BASIC,
        )


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
        launcher: Where the jobs go.
        specs: Of the jobs, as far as they are known.
        typed: The command line, without secrets.
    """

    def __init__(self, launcher: Launcher, specs: Sequence[RunSpec], typed: Sequence[str]) -> None:
        self._launcher = launcher
        self._expected = len(specs) if specs and launcher.knows_jobs else None
        self._resume = shlex.join([*_elsewhere(typed), launcher.override])
        self._earlier = {path.name for path in self._pickles()}
        # A sweep that is resumed has states of its last launch.
        states = launcher.sweep_dir.glob("[0-9]*/state.json")
        self._starts = {int(state.parent.name): _starts(state.parent) for state in states}

    def run(self, submit: Callable[[], object]) -> int:
        """Run it; returns the worst job's exit code.

        Args:
            submit: Hydra's own way, which also waits, but not for all; it reads `sys.argv`.

        Raises:
            ClusterError: Slurm refuses the jobs.
            KeyboardInterrupt: The user is tired of waiting; the jobs go on.
        """
        sys.argv[1:] = [*_elsewhere(sys.argv[1:]), self._launcher.override]
        number = "jobs" if self._expected is None else f"{self._expected} jobs"
        _say(f"{number} of {self._launcher.name} in {self._launcher.sweep_dir}; logs in {self._logs()}")
        try:
            try:
                submit()
            except Exception as error:
                # Most likely that of the first job that failed; all jobs are looked at below.
                if not self._submitted():
                    raise _submission_error(self._launcher.name, error) from error
            jobs = self._submitted()
            for job in jobs:
                job.wait()
        except KeyboardInterrupt:
            self._say_how_to_cancel()
            raise
        return self._show({job.number: job for job in jobs})

    def _logs(self) -> Path:
        return Path(str(self._launcher.folder).partition("%")[0])

    def _pickles(self) -> list[Path]:
        pattern = self._launcher.folder.name.replace("%j", "*")
        return sorted(self._launcher.folder.parent.glob(f"{pattern}/*_submitted.pkl"))

    def _submitted(self) -> list[_Job]:
        """The jobs of this launch, as submitit wrote them down."""
        import submitit
        from submitit.core.utils import DelayedSubmission

        kind = submitit.SlurmJob if self._launcher.executor == "slurm" else submitit.LocalJob
        jobs = []
        for path in self._pickles():
            if path.name not in self._earlier:
                job = kind(self._launcher.folder, path.name.removesuffix("_submitted.pkl"))
                # What the launcher is called with: overrides, key, number, ...
                number = DelayedSubmission.load(path).args[2]
                jobs.append(_Job(job.job_id, number, job.paths.stderr, self._launcher.executor == "local", job))
        return jobs

    def _show(self, jobs: dict[int, _Job]) -> int:
        """List the jobs and why some failed; returns the worst exit code."""
        numbers = sorted(jobs) if self._expected is None else range(self._expected)
        outcomes, reasons = [], []
        for number in numbers:
            run_dir = self._launcher.sweep_dir / str(number)
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
            command = "scancel" if self._launcher.executor == "slurm" else "kill"
            _say(f"\nThe jobs go on, and write to {self._launcher.sweep_dir}. Cancel them with:")
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


def _submission_error(name: str, error: Exception) -> Exception:
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    if isinstance(error, FailedJobError | FailedSubmissionError):
        return ClusterError(f"{name} can't submit the jobs:\n{str(error).strip()}")
    return error


def _elsewhere(arguments: Sequence[str]) -> list[str]:
    """Arguments without the folder of the sweep."""
    return [argument for argument in arguments if not argument.startswith("hydra.sweep.dir=")]


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
