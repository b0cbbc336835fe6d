"""Entry points: `python run.py` and the console script `matrix`."""

from __future__ import annotations

import gc
import os
import shlex
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from matrix import __version__
from matrix.compose import (
    COMPOSITION_ERRORS,
    CONFIG_DIR,
    check_sweep,
    compose_config,
    describe,
    explain,
    find_launcher,
    open_mappings,
    to_spec,
)
from matrix.errors import ConfigError, MatrixError

if TYPE_CHECKING:
    from matrix.run.jobs import Jobs
    from matrix.spec import RunSpec

USAGE = """\
usage: matrix run [overrides]     compose one experiment and run it (matrix run --help: groups and keys)
       matrix inference app=URL_OR_NAME input=FILES output=FILE [overrides]
                                  send rows to a model that is served already (matrix inference --help)
       matrix deploy_applications [--action add|replace|remove] [overrides]
                                  deploy apps that stay (matrix deploy_applications --help)
       matrix start_cluster       start a Ray cluster that stays, on Slurm or here, or add workers to it
       matrix remove_workers      take workers away from it
       matrix attach RUN          follow a run inside a cluster again
       matrix show RUN            a run's conversations, on the terminal or as a page of HTML (matrix show --help)
       matrix status              head, workers, nodes, apps and their replicas, runs
       matrix check_health app=NAME
                                  ask an app something
       matrix stop_cluster        stop a cluster
       matrix swe_predictions RUN what a run with agents=swe handed in, for SWE-bench's harness
       matrix convert_images folder=FOLDER dataset=NAME
                                  files for apptainer of SWE-bench's images
       matrix --version

An override is group=option or any.key=value; -m sweeps. In a checkout, `python run.py` is the same as `matrix run`.
"""


_COMMANDS = {
    "deploy_applications": "deploy",
    "status": "status",
    "check_health": "health",
    "stop_cluster": "stop",
    "start_cluster": "start",
    "remove_workers": "remove_workers",
    "attach": "attach",
    "show": "show",
    "swe_predictions": "swe_predictions",
    "convert_images": "convert_images",
}
"""Commands, and the modules in `matrix.commands` that they are in."""

HELP = """\
matrix: one config, one experiment of LLM generation at scale.

  {program}                                     a small real model on this machine, no GPU needed
  {program} pipeline=gsm8k dataset.limit=32     a benchmark
  {program} -m sampling.temperature=0,0.7       a sweep: the model is loaded once
  {program} run.dir=outputs/NAME/RUN            resume what was cut off
  {program} recipes=NAME                        a published experiment
  {program} ... --cfg job --resolve             print the whole config, start nothing

Every field is described by the comment above it, in conf/. Flags of Hydra itself: --hydra-help

"""


def main() -> None:
    """The console script."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["run"]:
        sys.argv = [f"{sys.argv[0]} run", *arguments[1:]]
        run()
    elif arguments[:1] == ["inference"]:
        from matrix.inference import command

        sys.exit(command.main(arguments[1:]))
    elif arguments and arguments[0] in _COMMANDS:
        sys.exit(_command(arguments[0], arguments[1:]))
    elif arguments == ["--version"]:
        print(f"matrix {__version__}")
    elif arguments in ([], ["-h"], ["--help"]):
        print(USAGE, end="")
    else:
        print(f"matrix: no such command: {arguments[0]}\n\n{USAGE}", end="", file=sys.stderr)
        sys.exit(2)


def _command(name: str, arguments: list[str]) -> int:
    """Run one of the commands that have no run dir; returns its exit code."""
    module = import_module(f"matrix.commands.{_COMMANDS[name]}")
    if {"-h", "--help"} & set(arguments):
        print(module.HELP, end="")
        return 0
    try:
        code: int = module.main(arguments)
    except MatrixError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return code


def run() -> None:
    """Compose the command line's experiment, or each job of its sweep, run it, and exit with what came of it."""
    # Composing makes many objects and no garbage: without the collector it is 6 % faster.
    gc.disable()
    command = _Command(sys.argv[1:])
    # Hydra's parser wants flags before overrides or after them, not between.
    sys.argv[1:] = sorted(open_mappings(sys.argv[1:]), key=lambda argument: argument not in ("-m", "--multirun"))
    # Hydra would print its first error and a stack; with this it raises, and all problems are said at once.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    # pydantic would read the metadata of every installed package in search of plugins: 5 % of a config error's time.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
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
    # Python would look through all objects for garbage as it ends: a seventh of a config error's time.
    gc.freeze()
    sys.exit(code)


class _Command:
    """One command line: a run, or the jobs of a sweep."""

    def __init__(self, typed: list[str]) -> None:
        self._typed = typed
        self._program = _program()
        self._jobs: Jobs | None = None
        self._refused = 0
        self._code = 0
        self._is_launched = False

    def __getstate__(self) -> dict[str, Any]:
        """What a launcher takes to a process of one job, also from one that is requeued."""
        return {**self.__dict__, "_jobs": None, "_is_launched": True}

    def execute(self) -> int:
        """Run what the command line says; return the exit code, the worst job's for a sweep."""
        arguments = get_args_parser().parse_args()
        try:
            if arguments.help:
                print(HELP.format(program=shlex.join(_program())) + describe(arguments.overrides))
            elif _is_single_run(self._typed):
                self._start(compose_config(arguments.overrides))
            else:
                return self._enter_hydra_for(arguments.overrides, sweeps=arguments.multirun)
        except COMPOSITION_ERRORS as error:
            return _say(explain(arguments.overrides, error))
        except MatrixError as error:
            return _say(error)
        return self._exit_code

    def close(self) -> None:
        """End what the jobs shared."""
        if self._jobs:
            self._jobs.close()

    def _enter_hydra_for(self, overrides: list[str], *, sweeps: bool) -> int:
        enter = hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="config")(self._job)
        specs = check_sweep(overrides) if sweeps else []
        launcher = find_launcher(overrides) if sweeps else None
        if launcher is not None:
            from matrix.run.launcher import Launch, refuse_slurm
            from matrix.spec.redact import redact_arguments

            refuse_slurm(specs)
            if not any(spec.plan for spec in specs):
                sys.argv[1:] = launcher.settled(sys.argv[1:])
                resume = shlex.join([*self._program, *launcher.settled(redact_arguments(self._typed))])
                expected = len(specs) if specs and launcher.knows_jobs else None
                return Launch(launcher.executor, launcher.folder, launcher.sweep_dir, expected, resume).run(enter)
            # A plan starts nothing, jobs neither.
            sys.argv[1:] = [a for a in sys.argv[1:] if not a.startswith(("hydra/launcher=", "hydra.launcher."))]
        elif specs and self._elsewhere(specs[0], sweeps=True):
            return self._code
        enter()
        return self._exit_code

    @property
    def _exit_code(self) -> int:
        return max(self._refused, self._code, self._jobs.exit_code if self._jobs else 0)

    def _job(self, cfg: DictConfig) -> float | None:
        """Run one job of Hydra's; its headline score is what a sweeper that searches gets."""
        runtime = HydraConfig.get()
        try:
            if runtime.mode != RunMode.MULTIRUN:
                return self._start(cfg)
            sweep_dir, number = Path(runtime.sweep.dir), int(runtime.job.num)
            if self._is_launched:
                return self._launched(cfg, sweep_dir, number)
            return self._start(cfg, sweep_dir, number)
        except MatrixError as error:
            # Raised, Hydra would say more of it than there is to say.
            self._refused = max(self._refused, _say(error))
            if self._is_launched:
                raise
            return None

    def _launched(self, cfg: DictConfig, sweep_dir: Path, number: int) -> float | None:
        """Run the one job of this process, which ends with it."""
        from matrix.run.launcher import end_job, refuse_slurm
        from matrix.run.stop import Interrupted

        try:
            refuse_slurm([to_spec(cfg)])
            return self._start(cfg, sweep_dir, number)
        except Interrupted as stopped:
            self.close()
            end_job(stopped, sweep_dir / str(number))
        finally:
            self.close()

    def _start(self, cfg: DictConfig, sweep_dir: Path | None = None, number: int | None = None) -> float | None:
        spec = to_spec(cfg)
        gc.enable()
        if sweep_dir is None and self._elsewhere(spec):
            return None
        from matrix.run.jobs import Jobs

        self._jobs = self._jobs or Jobs(self._program, self._typed)
        return self._jobs.run(spec, sweep_dir, number)

    def _elsewhere(self, spec: RunSpec, *, sweeps: bool = False) -> bool:
        """Hand a run, or a sweep as a whole, over to the cluster that it runs inside; whether there is one."""
        if spec.cluster.kind != "slurm" or spec.plan:
            return False
        from matrix.run.remote import elsewhere, run_there, with_run_dir, with_sweep_dir

        there = elsewhere(spec.cluster)
        if there is not None:
            gc.enable()
            arguments, folder = (with_sweep_dir if sweeps else with_run_dir)(spec, self._typed)
            self._code = run_there(there, ["run", *arguments], folder, detach=spec.run.detach)
        return there is not None


def _is_single_run(arguments: list[str]) -> bool:
    """Whether there is nothing for Hydra's own entry to do: no flag of it, no setting but the search path."""
    return not any(a.startswith("-") or (a.startswith("hydra") and "searchpath" not in a) for a in arguments)


def _say(error: MatrixError) -> int:
    print(error, file=sys.stderr)
    if isinstance(error, ConfigError):
        print(f"\n{shlex.join([*_program(), '--help'])} lists groups and keys.", file=sys.stderr)
    return error.exit_code


def _program() -> list[str]:
    return ["matrix", "run"] if sys.argv[0].endswith(" run") else ["python", sys.argv[0]]
