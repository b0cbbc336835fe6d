"""Entry points: `python run.py` and the console script `matrix`."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from matrix import __version__
from matrix.compose import COMPOSITION_ERRORS, CONFIG_DIR, check_sweep, explain, open_mappings, to_spec
from matrix.errors import ConfigError, MatrixError

if TYPE_CHECKING:
    from matrix.run.jobs import Jobs

USAGE = """\
usage: matrix run [overrides]     compose one experiment and run it (matrix run --help: groups and keys)
       matrix --version

An override is group=option or any.key=value; -m sweeps. In a checkout, `python run.py` is the same as `matrix run`.
"""


def main() -> None:
    """The console script."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["run"]:
        sys.argv = [f"{sys.argv[0]} run", *arguments[1:]]
        run()
    elif arguments == ["--version"]:
        print(f"matrix {__version__}")
    else:
        wanted_help = arguments in ([], ["-h"], ["--help"])
        print(USAGE if wanted_help else f"matrix: no such command: {arguments[0]}\n\n{USAGE}", end="", file=None)
        sys.exit(0 if wanted_help else 2)


def run() -> None:
    """Compose the command line's experiment, or each job of its sweep, run it, and exit with what came of it."""
    command = _Command(sys.argv[1:])
    # Hydra's parser wants flags before overrides or after them, not between.
    sys.argv[1:] = sorted(open_mappings(sys.argv[1:]), key=lambda argument: argument not in ("-m", "--multirun"))
    # Hydra would print its first error and a stack; with this it raises, and all problems are said at once.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        code = command.execute()
    except KeyboardInterrupt as stopped:
        code = getattr(stopped, "exit_code", 130)
    except BrokenPipeError:
        # The reader of our output has seen enough (`--help | head`); Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    finally:
        command.close()
    sys.exit(code)


class _Command:
    """One command line: a run, or the jobs of a sweep."""

    def __init__(self, typed: list[str]) -> None:
        self._typed = typed
        self._jobs: Jobs | None = None
        self._refused = 0

    def execute(self) -> int:
        """Hand the command line to Hydra; return the exit code, the worst job's for a sweep."""
        arguments = get_args_parser().parse_args()
        try:
            if arguments.multirun:
                check_sweep(arguments.overrides)
            hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="config")(self._job)()
        except COMPOSITION_ERRORS as error:
            return _say(explain(arguments.overrides, error))
        except MatrixError as error:
            return _say(error)
        return max(self._refused, self._jobs.exit_code if self._jobs else 0)

    def close(self) -> None:
        """End what the jobs shared."""
        if self._jobs:
            self._jobs.close()

    def _job(self, cfg: DictConfig) -> float | None:
        """Run one job; its headline score is what a sweeper that searches gets."""
        try:
            spec = to_spec(cfg)
            from matrix.run.jobs import Jobs

            self._jobs = self._jobs or Jobs(_program(), self._typed)
            runtime = HydraConfig.get()
            if runtime.mode == RunMode.MULTIRUN:
                return self._jobs.run(spec, Path(runtime.sweep.dir), int(runtime.job.num))
            return self._jobs.run(spec)
        except MatrixError as error:
            # Raised, Hydra would say more of it than there is to say.
            self._refused = max(self._refused, _say(error))
            return None


def _say(error: MatrixError) -> int:
    print(error, file=sys.stderr)
    if isinstance(error, ConfigError):
        print(f"\n{shlex.join([*_program(), '--help'])} lists groups and keys.", file=sys.stderr)
    return error.exit_code


def _program() -> list[str]:
    return ["matrix", "run"] if sys.argv[0].endswith(" run") else ["python", sys.argv[0]]
