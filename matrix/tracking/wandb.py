"""One Weights & Biases run per job."""

from __future__ import annotations

import logging
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from matrix import __version__
from matrix.errors import ConfigError, MatrixError, Problem
from matrix.spec.redact import redact_arguments
from matrix.spec.tracker import WandbTracker as WandbSpec
from matrix.tracking.tracker import JobInfo

if TYPE_CHECKING:
    from matrix.data.rows import Row

Mode = Literal["online", "offline", "disabled"]

INIT_TIMEOUT_S = 30
"""How long the server may take to open a run, before the run goes on offline."""
FINISH_TIMEOUT_S = 600
"""How long the rest may take to upload when a job is over, before the upload is left to `wandb sync`."""
X_AXIS = "rows_done"
TEAM_AXIS = "elapsed_s"
"""A team's figures are over time: much happens before the first row of it is done, and after the last but one."""
TEAM = "agents/"

_ENV_MODES: dict[str, Mode | Literal["auto"]] = {
    "": "auto",
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
_MAX_TAG = 64
_NO_RUN = "The run can't be logged to W&B."

log = logging.getLogger(__name__)


class WandbTracker:
    """Shows one job as one W&B run. Where W&B fails, the job goes on and the log says how to upload later.

    Args:
        spec: The config group `tracker`.
    """

    def __init__(self, spec: WandbSpec) -> None:
        self._spec = spec
        from matrix.data.sampling import Samples

        self._samples = Samples(spec.samples)
        self._run: Any = None
        self._step = 0
        self._over_time: set[str] = set()
        self._notice: str | None = None

    def start(self, job: JobInfo) -> None:
        """Open the run: 0.15 s offline, about 1 s online, and another 1 s for the first one (wandb and its service)."""
        mode = choose_mode(self._spec)
        if mode == "disabled":
            log.info("W&B is disabled in this environment: nothing is logged there")
            return
        wandb = _load()
        try:
            try:
                self._run = self._open(job, mode)
            except (wandb.errors.CommError, TimeoutError) as error:
                log.warning("The W&B server can't be used; the run is logged offline. %s", error)
                _stop_service()  # It holds the run that failed, and its id with it.
                self._run = self._open(job, "offline")
        except (wandb.Error, ValueError) as error:
            raise MatrixError(f"tracker=wandb: {error} (mend it, or go on with tracker=none)") from error
        self._run.define_metric(X_AXIS)
        self._run.define_metric("*", step_metric=X_AXIS)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics over the rows done."""
        self._step = step
        with self._guarded() as run:
            if run:
                self._define(run, metrics)
                run.log({X_AXIS: step, **metrics})

    def sample(self, row: Row) -> None:
        """Keep the row if it belongs to the sample (see `Samples`)."""
        self._samples.add(row)

    def finish(self, summary: Mapping[str, Any], exit_code: int, rows_file: Path | None) -> None:
        """Record summary, samples and rows, upload what is left and close the run."""
        with self._guarded() as run:
            if not run:
                return
            run.summary.update(flatten(summary))
            with _staging_in(Path(run.settings.wandb_dir)):
                self._log_samples(run)
                if self._spec.log_rows and rows_file:
                    _log_rows(run, rows_file)
            self._close(run, exit_code)

    def notice(self) -> str | None:
        """Where the run is, or the command that uploads it."""
        return self._notice

    def _open(self, job: JobInfo, mode: Mode) -> Any:
        spec = self._spec
        tags = dict.fromkeys(tag[:_MAX_TAG] for tag in (*job.tags, *spec.tags) if tag)
        with _redacted_argv():
            return _load().init(
                project=spec.project,
                entity=spec.entity,
                group=spec.group or job.sweep_id,
                job_type=spec.job_type or job.job_type,
                name=job.name,
                notes=spec.notes,
                tags=list(tags),
                config={
                    **job.config,
                    "matrix": {"version": __version__, "command": job.command, "run_dir": str(job.run_dir)},
                },
                dir=job.run_dir,
                id=_clean(job.run_id),
                resume="allow",
                reinit="create_new",
                mode=mode,
                save_code=False,
                settings=_load().Settings(
                    console="off",
                    disable_git=True,
                    init_timeout=INIT_TIMEOUT_S,
                    finish_timeout=FINISH_TIMEOUT_S,
                    finish_timeout_raises=True,
                ),
            )

    def _define(self, run: Any, metrics: Mapping[str, float]) -> None:
        # By name: which of two globs holds for a metric, W&B doesn't say.
        new = {name for name in metrics if name.startswith(TEAM)} - self._over_time
        for name in sorted(new):
            run.define_metric(name, step_metric=TEAM_AXIS)
        self._over_time |= new

    def _log_samples(self, run: Any) -> None:
        # Loaded here, since a check of the config, which comes through this module, has to be quick.
        from matrix.tracking.samples import tabulate

        if rows := self._samples.rows():
            columns, data = tabulate(rows)
            run.log({X_AXIS: self._step, "samples": _load().Table(columns=columns, data=data)})

    def _close(self, run: Any, exit_code: int) -> None:
        self._run = None
        try:
            run.finish(exit_code=exit_code)
        except TimeoutError:
            log.warning("W&B didn't get everything within %d s; the rest is kept in the run dir", FINISH_TIMEOUT_S)
            self._notice = _sync_command(run)
            _stop_service()
        else:
            self._notice = f"W&B: {run.url}" if run.url else _sync_command(run)

    @contextmanager
    def _guarded(self) -> Iterator[Any]:
        """The border to wandb's service process, which can die under the job: give the open run, or None."""
        run = self._run
        try:
            yield run
        except OSError as error:
            log.warning("W&B broke off, nothing more is logged there: %s", error)
            self._run = None
            self._notice = _sync_command(run)
            _stop_service()


def choose_mode(spec: WandbSpec) -> Mode:
    """Decide whether the run is online: what the config says, then the environment, then whether there is a key.

    Keys come from where `wandb login` and its documentation put them: `WANDB_API_KEY`, `WANDB_IDENTITY_TOKEN_FILE`,
    netrc, wandb's settings files. Nothing is asked, of the user or of the server.

    Raises:
        ConfigError: An online run without a key, or a mode that doesn't exist.
    """
    mode = _wanted_mode(spec)
    if mode in ("offline", "disabled"):
        return mode
    wandb = _load()
    problem, hint = "no W&B key was found", "set WANDB_API_KEY, run `wandb login`, or choose tracker.mode=offline"
    try:
        settings = wandb.setup().settings
        if mode == "auto" and settings.mode in ("offline", "dryrun", "disabled"):  # Said by `wandb offline`.
            return "disabled" if settings.mode == "disabled" else "offline"
        if settings.mode != "online":
            wandb.setup(wandb.Settings(mode="online"))  # `login` would refuse.
        if wandb.login(prompt=False, verify=False):
            return "online"
    except (wandb.Error, ValueError) as error:
        problem = str(error)
    if mode == "online":
        raise ConfigError([Problem("tracker.mode", spec.mode, problem, hint)], _NO_RUN)
    log.info("The run is logged to W&B offline: %s", problem)
    return "offline"


def find_problems(spec: WandbSpec) -> list[Problem]:
    """Find what would keep a run from starting. Loads wandb only for a run that is asked to be online."""
    problems = []
    if found := set(spec.project) & set("/\\#?%:"):
        problems.append(Problem("tracker.project", spec.project, f"W&B allows no {' '.join(sorted(found))} in it"))
    problems += [
        Problem(f"tracker.tags.{number}", tag, f"a W&B tag has 1 to {_MAX_TAG} characters")
        for number, tag in enumerate(spec.tags)
        if not 1 <= len(tag) <= _MAX_TAG
    ]
    try:
        if _wanted_mode(spec) == "online":
            choose_mode(spec)
    except ConfigError as error:
        problems += error.problems
    return problems


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested names into one: `{"scores": {"math": {"mean": 0.5}}}` into `{"scores/math/mean": 0.5}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _load() -> Any:
    """Import wandb without its talk (banners, "Loading settings from ...") and without reports to its makers."""
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    return wandb


def _wanted_mode(spec: WandbSpec) -> Mode | Literal["auto"]:
    if spec.mode != "auto":
        return spec.mode
    said = os.environ.get("WANDB_MODE", "")
    if said not in _ENV_MODES:
        known = ", ".join(name for name in _ENV_MODES if name)
        raise ConfigError([Problem("WANDB_MODE", said, "no such mode", f"the environment may say {known}")], _NO_RUN)
    return _ENV_MODES[said]


def _clean(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.")


def _log_rows(run: Any, rows_file: Path) -> None:
    artifact = _load().Artifact(f"rows-{run.id}", type="rows")
    # Neither copied aside before the upload nor kept in the cache after it: rows can be many gigabytes.
    artifact.add_file(str(rows_file), policy="immutable", skip_cache=True)
    run.log_artifact(artifact)


def _sync_command(run: Any) -> str:
    """The command that uploads the run; all of its parts, where it was resumed offline."""
    folder = Path(run.settings.sync_dir)
    offline = folder.name.startswith("offline-run-")
    parts = sorted(folder.parent.glob("offline-run-*")) if offline else [folder]
    # `wandb sync` passes over runs that began online unless told otherwise.
    options = [] if offline else ["--include-online"]
    return f"W&B, to upload: {shlex.join(['wandb', 'sync', *options, *map(str, parts)])}"


def _stop_service() -> None:
    """End wandb's service process, and with it what it still holds; the next run starts a new one."""
    # A service that crashed can't be told to stop, and wandb exits with the service's exit code.
    with suppress(OSError, SystemExit):
        _load().teardown()


@contextmanager
def _staging_in(folder: Path) -> Iterator[None]:
    """Keep what waits for its upload with the run, not in the home directory (wandb reads the variable on each use)."""
    chosen = os.environ.get("WANDB_DATA_DIR")
    os.environ["WANDB_DATA_DIR"] = chosen or str(folder)
    try:
        yield
    finally:
        if chosen is None:
            del os.environ["WANDB_DATA_DIR"]


@contextmanager
def _redacted_argv() -> Iterator[None]:
    """Wandb stores `sys.argv` with the run, and there is no setting against it."""
    arguments = sys.argv
    sys.argv = redact_arguments(arguments)
    try:
        yield
    finally:
        sys.argv = arguments
