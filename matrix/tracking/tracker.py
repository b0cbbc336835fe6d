"""What a tracker is, and which one a spec asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from matrix.errors import Problem
from matrix.spec.tracker import NoTracker, TrackerSpec

if TYPE_CHECKING:
    from matrix.data.rows import Row

_CLASSES = {
    "none": "matrix.tracking.none:SilentTracker",
    "wandb": "matrix.tracking.wandb:WandbTracker",
}


@dataclass(frozen=True)
class JobInfo:
    """What a tracker is told about the job that it tracks.

    Attributes:
        name: Name that people read.
        run_id: The same for every start of the same run dir, so that a resumed run goes on where it is shown already.
        run_dir: Folder of the run, which also takes the tracker's own files.
        sweep_id: Name of the sweep that the job belongs to; None for a single run.
        job_type: What the job does, such as the name of its pipeline.
        config: The resolved spec as plain data, secrets already redacted.
        tags: Labels; those of the spec come on top.
        command: The command line, secrets already redacted.
    """

    name: str
    run_id: str
    run_dir: Path
    sweep_id: str | None
    job_type: str
    config: dict[str, Any]
    tags: tuple[str, ...]
    command: str


class Tracker(Protocol):
    """Follows one job from `start` to `finish`. A tracker that loses its server never fails the job."""

    def start(self, job: JobInfo) -> None:
        """Open the job's run.

        Raises:
            ConfigError: The spec asks for what isn't there, such as an online run without a key.
            MatrixError: The tracker refuses the job.
        """

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics over time; `step` is the number of rows done, the x axis."""

    def sample(self, row: Row) -> None:
        """Consider a finished row for the table of samples; called for every row, also before `start`."""

    def finish(self, summary: Mapping[str, Any], exit_code: int, rows_file: Path | None) -> None:
        """Record the summary, the samples and the rows, and close the run; does nothing if it isn't open.

        Args:
            summary: Scores and totals, nested as in `summary.json`; empty if the job failed before it had any.
            exit_code: 0 if the job succeeded.
            rows_file: File with all rows; None if there is none.
        """

    def notice(self) -> str | None:
        """The one line that tells the user where the finished run is; None if there is nothing to tell."""


def make_tracker(spec: TrackerSpec) -> Tracker:
    """Make the tracker that a spec asks for; it starts nothing yet."""
    module, _, name = _CLASSES[spec.kind].partition(":")
    tracker: Tracker = getattr(import_module(module), name)(spec)
    return tracker


def check_tracker(spec: TrackerSpec) -> list[Problem]:
    """Find what would keep a tracker from starting, without starting it or asking its server.

    Loads wandb (0.7 s) only where the answer needs it: for runs that are asked to be online.
    """
    if isinstance(spec, NoTracker):
        return []
    if find_spec("wandb") is None:
        hint = "pip install 'matrix-llm[wandb]', or tracker=none"
        return [Problem("tracker.kind", "wandb", "wandb is not installed", hint)]
    from matrix.tracking.wandb import find_problems

    return find_problems(spec)
