"""Hydra's side of the house: overrides -> composed config -> RunSpec, and every problem on the way at once.

This module and `matrix.cli` are the only ones that know Hydra.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import create_config_search_path
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from matrix.errors import ConfigError, Problem, did_you_mean

if TYPE_CHECKING:
    from matrix.spec import RunSpec

_CHECKOUT = Path(__file__).parent.parent / "conf"
CONFIG_DIR = str(_CHECKOUT if (_CHECKOUT / "config.yaml").is_file() else Path(__file__).parent / "conf")
"""The config groups: those of the checkout, else the ones packed into the wheel."""

# OmegaConf takes the loader in Python, which needs 30 ms more for the files of a config than libyaml's.
yaml.SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # type: ignore[misc]

COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException)

# Mappings whose keys are the engine's own names: an override may add to them without Hydra's `+`.
_OPEN = re.compile(
    r"((apps\.[^.=]+\.)?(engine\.(args|env|resources|languages|images|mounts|environment)|model\.args)|sampling\.extra|"
    r"cluster\.(slurm|head)\.args|(cluster|workload)\.resources)(\.|=\{)|agents\."
)
# Groups that a run may do without; Hydra ends with a traceback on `pipeline=null`.
_NO_GROUP = re.compile(r"(?P<group>pipeline|agents|recipes)=null")
_SUBMITIT = re.compile(r"hydra_plugins\.hydra_submitit_launcher\..*\.(?P<executor>\w+)Launcher")
# A path that Hydra takes without quotes.
_PLAIN_PATH = re.compile(r"[\w./+-]+")
# Groups of apps that stand in conf/config.yaml without an option, so that pipelines can bring one along.
_SLOTS = {"engine@apps.code.engine"}
_APP_GROUP = re.compile(r"apps\.(?P<app>[^.=]+)\.(?P<group>engine|model)=(?P<options>[^{\[].*)")


def open_mappings(arguments: Iterable[str]) -> list[str]:
    """Return command line arguments in Hydra's own words where ours are shorter.

    `engine.args.x=1` is `++engine.args.x=1`; `apps.judge.model=llama8b` is `+model@apps.judge.model=llama8b`, and an
    app that is given no engine gets vLLM; `pipeline=null` is `~pipeline`.
    """
    given = list(arguments)
    groups = [found for found in map(_APP_GROUP.fullmatch, given) if found]
    with_engine = {found["app"] for found in groups if found["group"] == "engine"}
    apps = dict.fromkeys(found["app"] for found in groups)
    added = [f"+engine@apps.{app}.engine=vllm" for app in apps if app not in with_engine]
    return [_opened(argument) for argument in given] + added


def _opened(argument: str) -> str:
    if found := _APP_GROUP.fullmatch(argument):
        group = f"{found['group']}@apps.{found['app']}.{found['group']}"
        if group not in _SLOTS:
            return f"+{group}={found['options']}"
        return f"~{group}" if found["options"] == "null" else f"{group}={found['options']}"
    if found := _NO_GROUP.fullmatch(argument):
        return f"~{found['group']}"
    return f"++{argument}" if _OPEN.match(argument) else argument


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """Compose the config of one job, as `python run.py OVERRIDES` has it.

    It is what Hydra's own entry does for a single run, in half of its time: that composes everything twice.
    """
    with initialize_config_dir(config_dir=CONFIG_DIR, version_base="1.3", job_name="matrix"):
        try:
            cfg = compose("config", overrides=open_mappings(overrides), return_hydra_config=True)
        except ValueError as error:
            # Of `model=null`, before Hydra looks at anything else.
            raise HydraException(str(error)) from error
    # For `${hydra:...}` in a user's own files.
    HydraConfig.instance().set_config(cfg)
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])


def compose_spec(overrides: Sequence[str] = (), *, joins: bool = True) -> RunSpec:
    """Compose and check a spec from Python.

    Args:
        overrides: As on the command line.
        joins: As for `matrix.check.check`.

    Raises:
        ConfigError: With every problem that was found.
    """
    try:
        cfg = compose_config(overrides)
    except COMPOSITION_ERRORS as error:
        raise explain(overrides, error) from error
    return to_spec(cfg, joins=joins)


def to_spec(cfg: DictConfig, *, joins: bool = True) -> RunSpec:
    """Turn a composed config into a checked spec.

    Raises:
        ConfigError: With every problem that was found.
    """
    from matrix.check import check

    missing = sorted(OmegaConf.missing_keys(cfg))
    for key in missing:
        OmegaConf.update(cfg, key, None)
    spec, found = check(_plain(cfg), joins=joins)
    problems = [Problem(key, None, "has no default", f"give it: {key}=VALUE") for key in missing]
    problems += [problem for problem in found if not any(key.startswith(problem.key) for key in missing)]
    if spec is None or problems:
        raise ConfigError(problems)
    return spec


def check_sweep(overrides: Sequence[str]) -> list[RunSpec]:
    """Check every job of a sweep before the first one starts.

    Sweepers that find their points while they go (an interval, a search) are checked job by job instead.

    Returns:
        The specs of the jobs; none if they aren't known yet.

    Raises:
        ConfigError: With the problems of all jobs, each said once.
    """
    parsed = OverridesParser.create().parse_overrides(open_mappings(overrides))
    if any(override.is_sweep_override() and not override.is_discrete_sweep() for override in parsed):
        return []
    specs: list[RunSpec] = []
    problems: list[Problem] = []
    for job in BasicSweeper.split_arguments(parsed, None)[0]:
        try:
            specs.append(compose_spec(job))
        except ConfigError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    if any(_place(spec) != _place(specs[0]) for spec in specs):
        hint = "one cluster for all, or a command for each"
        problems.append(Problem("cluster", None, "the jobs of a sweep are on different clusters", hint))
    if problems:
        raise ConfigError(problems, "The sweep has problems; none of its jobs was started.")
    return specs


def _place(spec: RunSpec) -> tuple[str, str | None]:
    return spec.cluster.kind, getattr(spec.cluster, "id", None)


@dataclass(frozen=True)
class Launcher:
    """Where the jobs of a sweep go that have an allocation of their own each.

    Attributes:
        executor: submitit's.
        folder: submitit's folder of a job, with `%j` for its id.
        sweep_dir: Folder of the sweep, absolute.
        knows_jobs: The jobs are all combinations of the command line, not what a sweeper finds on its way.
    """

    executor: str
    folder: Path
    sweep_dir: Path
    knows_jobs: bool

    def settled(self, arguments: Iterable[str]) -> list[str]:
        """Arguments that name the folder of the sweep, so that no job works it out for itself."""
        path = str(self.sweep_dir)
        if not _PLAIN_PATH.fullmatch(path):
            path = "'" + path.replace("'", r"\'") + "'"
        others = [argument for argument in arguments if not argument.startswith("hydra.sweep.dir=")]
        # Beside the overrides: Hydra's parser doesn't take them in two places.
        place = next((i for i, one in enumerate(others) if "=" in one and not one.startswith("-")), len(others))
        return [*others[:place], f"hydra.sweep.dir={path}", *others[place:]]


def find_launcher(overrides: Sequence[str]) -> Launcher | None:
    """The launcher of submitit that a sweep asks for; None for any other."""
    parsed = OverridesParser.create().parse_overrides(open_mappings(overrides))
    fixed = [override.input_line or "" for override in parsed if not override.is_sweep_override()]
    with initialize_config_dir(config_dir=CONFIG_DIR, version_base="1.3", job_name="matrix"):
        settings = compose("config", overrides=fixed, return_hydra_config=True).hydra
        found = _SUBMITIT.fullmatch(settings.launcher["_target_"])
        return found and Launcher(
            executor=found["executor"].lower(),
            folder=Path(settings.launcher.submitit_folder).expanduser().absolute(),
            sweep_dir=Path(settings.sweep.dir).expanduser().absolute(),
            knows_jobs=settings.sweeper["_target_"].endswith(".BasicSweeper"),
        )


def explain(overrides: Sequence[str], failure: Exception) -> ConfigError:
    """Find every problem of overrides that Hydra refused, instead of its first one.

    Overrides that name an unknown group option or key are set aside; the rest is composed and checked as usual.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(open_mappings(overrides))
    except HydraException as error:
        hint = "key=value; quote what the shell or Hydra would take apart: 'key=\"a b\"'"
        return ConfigError([Problem("command line", None, f"not an override: {_first_lines(error, 1)}", hint)])
    ours = [override for override in parsed if not override.key_or_group.startswith(("hydra.", "hydra/"))]
    problems, good = _unknown_options(ours, _group_options([o.input_line or "" for o in parsed if o not in ours]))
    if good:
        problems += _rest([line for line, is_group in good if is_group], [line for line, group in good if not group])
    return ConfigError(problems or [Problem("config", None, _with_cause(failure))])


def _rest(groups: list[str], lines: list[str]) -> list[Problem]:
    """Problems of what is left of a command line without its unknown group options."""
    try:
        problems, known = _unknown_keys(lines, compose_config(groups)) if lines else ([], [])
        to_spec(compose_config([*groups, *known]))
    except COMPOSITION_ERRORS as error:
        return [Problem("config", None, _first_lines(error))]
    except ConfigError as error:
        problems += error.problems
    return problems


def describe(overrides: Sequence[str]) -> str:
    """Groups with their options, and the composed config: what `--help` lists."""
    groups = _group_options(overrides)
    listed = [f"  {group}: {', '.join(options)}" for group, options in sorted(groups.items()) if options]
    return "\n".join(["Groups (group=option):", *listed, "", "Keys (any.key=value):", _indented(overrides)])


def _indented(overrides: Sequence[str]) -> str:
    return "\n".join(f"  {line}" for line in OmegaConf.to_yaml(compose_config(overrides)).splitlines())


def _plain(cfg: DictConfig) -> dict[str, Any]:
    try:
        plain = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        key = str(getattr(error, "full_key", None) or "config")
        raise ConfigError([Problem(key, None, str(error).splitlines()[0])]) from error
    assert isinstance(plain, dict)  # noqa: S101 - a DictConfig gives a dict
    return {str(key): value for key, value in plain.items()}


def _group_options(hydra_overrides: Sequence[str]) -> dict[str, list[str]]:
    """Config groups with their options, those of `hydra.searchpath` included."""
    loader = ConfigLoaderImpl(create_config_search_path(CONFIG_DIR))
    for line in hydra_overrides:
        if line.startswith("hydra.searchpath="):
            for path in OmegaConf.create(line.partition("=")[2]):
                loader.get_search_path().append("command-line", str(path))
    loader = ConfigLoaderImpl(loader.get_search_path())
    groups = [group for group in loader.list_groups("") if group != "hydra"]
    return {group: list(loader.get_group_options(group)) for group in groups}


def _unknown_options(
    overrides: Sequence[Override], groups: dict[str, list[str]]
) -> tuple[list[Problem], list[tuple[str, bool]]]:
    """Split overrides into problems with group options and good lines, each with whether it picks a group option."""
    problems: list[Problem] = []
    good: list[tuple[str, bool]] = []
    for override in overrides:
        group, line = override.key_or_group, _one_job(override)
        where = override.package or group
        if group not in groups:
            good.append((line, False))
            continue
        wanted = (
            [v.strip() for v in line.partition("=")[2].split(",")]
            if not override.is_sweep_override()
            else list(override.sweep_string_iterator())
        )
        unknown = [option for option in wanted if option not in groups[group]]
        problems += [
            Problem(where, option, f"no such option of '{group}'", did_you_mean(option, groups[group]))
            for option in unknown
        ]
        if not unknown:
            good.append((line, True))
    return problems, good


def _unknown_keys(lines: Sequence[str], config: DictConfig) -> tuple[list[Problem], list[str]]:
    problems: list[Problem] = []
    good: list[str] = []
    for line in lines:
        key, _, value = line.partition("=")
        name = key.lstrip("+~")
        parent, _, leaf = name.rpartition(".")
        node = OmegaConf.select(config, parent) if parent else config
        # Not `leaf in node`, which denies keys that still have to be given (`???`).
        names = [str(k) for k in node] if isinstance(node, DictConfig) else _leaves(config)
        if key.startswith("+") or (isinstance(node, DictConfig) and leaf in names) or OmegaConf.is_list(node):
            good.append(line)
            continue
        prefix = f"{parent}." if isinstance(node, DictConfig) and parent else ""
        problems.append(Problem(name, value, "no such key", did_you_mean(leaf if prefix else name, names, prefix)))
    return problems, good


def _one_job(override: Override) -> str:
    """The override as one job of a sweep sees it: its first value."""
    line = override.input_line or ""
    if not override.is_sweep_override() or not override.is_discrete_sweep():
        return line
    return f"{line.partition('=')[0]}={next(iter(override.sweep_string_iterator()))}"


def _leaves(config: DictConfig, prefix: str = "") -> list[str]:
    names: list[str] = []
    for key in map(str, config):
        path = f"{prefix}{key}"
        names.append(path)
        child = config._get_node(key)  # noqa: SLF001 - reading the value would resolve interpolations
        if isinstance(child, DictConfig):
            names += _leaves(child, f"{path}.")
    return names


def _with_cause(error: Exception) -> str:
    cause = f": {_first_lines(error.__cause__, 1)}" if error.__cause__ else ""
    return f"{_first_lines(error)}{cause}"


def _first_lines(error: BaseException, number: int = 3) -> str:
    return " ".join(line.strip() for line in str(error).splitlines()[:number])


if __name__ == "__main__":
    print("# The config that `python run.py` runs, composed. Written by `make config`; a test keeps it up to date.")
    print(OmegaConf.to_yaml(compose_config(sys.argv[1:])), end="")
