"""The jobs of one command: a single run, or the jobs of a sweep, which share cluster and engine."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console as RichConsole
from rich.table import Table

from matrix.check.sections import check_asked
from matrix.errors import ConfigError
from matrix.run.console import Console
from matrix.run.execute import Outcome, execute
from matrix.run.planning import show_plan, show_scripts
from matrix.run.rundir import place
from matrix.run.session import Session, on_cluster
from matrix.run.stop import Interrupted, stop_on_signals
from matrix.spec import RunSpec
from matrix.spec.redact import redact_arguments


class Jobs:
    """Runs jobs one after another and remembers what came of them.

    Args:
        program: What the command line begins with.
        arguments: The rest of it, as typed.
    """

    def __init__(self, program: list[str], arguments: list[str]) -> None:
        self._program = program
        self._arguments = arguments
        self._console = Console()
        self._session = Session(self._console)
        self._outcomes: list[Outcome] = []
        self._plans = 0

    @property
    def outcomes(self) -> list[Outcome]:
        """What came of the jobs so far, in their order."""
        return list(self._outcomes)

    @property
    def exit_code(self) -> int:
        """0 if every job went well, else the worst job's; 1 for a plan that lacks room."""
        return max((self._plans, *(outcome.exit_code for outcome in self._outcomes)))

    def run(self, spec: RunSpec, sweep_dir: Path | None = None, number: int | None = None) -> float | None:
        """Run one job, or with `plan` only say what it would start.

        A job that fails is remembered and leaves the others alone.

        Args:
            spec: The checked spec.
            sweep_dir: Folder of the sweep that the job belongs to.
            number: The job's number in it.

        Returns:
            The first scorer's accuracy, for sweepers that search; None if there is none.

        Raises:
            ConfigError: It asks an app for what it isn't.
            Interrupted: The process was asked to stop.
        """
        if spec.plan:
            show_scripts(spec.cluster)
            self._plans = max(self._plans, show_plan(spec.cluster, on_cluster(spec)))
            return None
        if problems := check_asked(spec):
            raise ConfigError(problems)
        run_dir = place(spec, sweep_dir, number)
        with stop_on_signals():
            try:
                outcome = execute(spec, run_dir, self._session, self._console, [*self._program, *self._arguments])
            except Interrupted:
                self._say_how_to_resume(run_dir.path, sweep_dir)
                raise
        self._outcomes.append(outcome)
        for score in (outcome.summary or {}).get("scores", {}).values():
            accuracy: float | None = score["accuracy"]
            return accuracy
        return None

    def close(self) -> None:
        """End what the jobs shared, and list them if they were several."""
        self._session.close()
        if len(self._outcomes) > 1:
            show_jobs(self._outcomes)

    def _say_how_to_resume(self, run_dir: Path, sweep_dir: Path | None) -> None:
        kept = [a for a in redact_arguments(self._arguments) if not a.startswith(("run.dir=", "hydra.sweep.dir="))]
        where = f"run.dir={_short(run_dir)}" if sweep_dir is None else f"hydra.sweep.dir={_short(sweep_dir)}"
        print(f"\nResume with:\n  {shlex.join([*self._program, *kept, where])}", file=sys.stderr)


def show_jobs(outcomes: Sequence[Outcome]) -> None:
    """Print a table of the jobs of a sweep."""
    table = Table(title="sweep", title_justify="left")
    for column in ("job", "exit code", "rows", "accuracy, or metrics"):
        table.add_column(column, overflow="fold")
    for outcome in outcomes:
        summary = outcome.summary or {"rows": {"ok": 0, "error": 0}, "scores": {}}
        scores = ", ".join(
            f"{label} {score['accuracy']:.4f}"
            for label, score in summary["scores"].items()
            if score["accuracy"] is not None
        )
        # A team without scorers has figures of its own.
        scores = scores or ", ".join(f"{name} {one['mean']:.4f}" for name, one in summary.get("metrics", {}).items())
        rows = f"{summary['rows']['ok']} ok, {summary['rows']['error']} errors"
        table.add_row(_short(outcome.run_dir), str(outcome.exit_code), rows, scores)
    RichConsole(highlight=False).print(table)


def _short(path: Path) -> str:
    path = path.resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
