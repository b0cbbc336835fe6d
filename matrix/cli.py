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
    typed = sys.argv[1:]
    sys.argv[1:] = open_mappings(typed)
    # Hydra would print one error and a stack; with this it raises, and all problems are said at once.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    arguments = get_args_parser().parse_args()
    jobs: list[Jobs] = []

    @hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="config")
    def job(cfg: DictConfig) -> float | None:
        spec = to_spec(cfg)
        from matrix.run.jobs import Jobs

        if not jobs:
            jobs.append(Jobs(typed))
        runtime = HydraConfig.get()
        if runtime.mode == RunMode.MULTIRUN:
            return jobs[0].run(spec, Path(runtime.sweep.dir), int(runtime.job.num))
        return jobs[0].run(spec)

    try:
        if arguments.multirun:
            check_sweep(arguments.overrides)
        job()
        code = jobs[0].exit_code if jobs else 0
    except COMPOSITION_ERRORS as error:
        code = _say(explain(arguments.overrides, error))
    except MatrixError as error:
        code = _say(error)
    except KeyboardInterrupt as stopped:
        code = getattr(stopped, "exit_code", 130)
    finally:
        if jobs:
            jobs[0].close()
    sys.exit(code)


def _say(error: MatrixError) -> int:
    print(error, file=sys.stderr)
    if isinstance(error, ConfigError):
        print(f"\n{shlex.join([*_program(), '--help'])} lists groups and keys.", file=sys.stderr)
    return error.exit_code


def _program() -> list[str]:
    return ["matrix", "run"] if sys.argv[0].endswith(" run") else ["python", sys.argv[0]]
