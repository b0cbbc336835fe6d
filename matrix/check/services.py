"""Rules on engines without a model: limits that contradict each other, and what this machine lacks."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from matrix.check.problems import is_installed, not_installed
from matrix.errors import Problem
from matrix.spec import ClusterSpec, ContainerEngine, EngineSpec, LocalCluster, SandboxEngine, ServiceEngine

_PROGRAMS = {"rootfs": "bwrap", "podman": "podman", "apptainer": "apptainer"}
_PACKAGES = {"bwrap": "bubblewrap", "podman": "podman", "apptainer": "apptainer"}


def check_service(prefix: str, engine: ServiceEngine) -> list[Problem]:
    """What can be said of it wherever it is to run.

    Args:
        prefix: What stands before `engine` in keys: empty, or `apps.NAME.`.
        engine: The engine.
    """
    return _sandbox(f"{prefix}engine", engine) if isinstance(engine, SandboxEngine) else []


def check_host(prefix: str, cluster: ClusterSpec, engine: EngineSpec) -> list[Problem]:
    """What it needs of the machine that it runs on, where that is this one.

    Args:
        prefix: As for `check_service`.
        cluster: Where it is to run.
        engine: The engine.
    """
    if not isinstance(cluster, LocalCluster) or not isinstance(engine, SandboxEngine | ContainerEngine):
        return []
    problems: list[Problem] = []
    if isinstance(engine, ContainerEngine):
        key, value, program = f"{prefix}engine.backend", str(engine.backend), _PROGRAMS[engine.backend]
    else:
        key, value, program = f"{prefix}engine.kind", str(engine.kind), "bwrap"
    if shutil.which(program) is None:
        package = _PACKAGES[program]
        hint = f"apt-get install {package}, or what this system calls it; there is no way to run without"
        problems.append(Problem(key, value, f"needs {package} ({program}), and this machine has none", hint))
    if program == "bwrap" and not is_installed("pyseccomp"):
        elsewhere = "a cluster whose nodes have it (cluster=attach)"
        problems.append(not_installed(key, value, "pyseccomp", "matrix-llm[sandbox]", elsewhere))
    if isinstance(engine, SandboxEngine):
        if engine.python is not None and not os.access(Path(engine.python).expanduser(), os.X_OK):
            hint = "an interpreter of this machine, or null for the one that matrix runs in"
            problems.append(Problem(f"{prefix}engine.python", engine.python, "no such program", hint))
        if engine.root is not None and not Path(engine.root).expanduser().is_dir():
            hint = "a folder with a system in it, or null for this machine's /usr"
            problems.append(Problem(f"{prefix}engine.root", engine.root, "no such folder", hint))
    return problems


def _sandbox(key: str, engine: SandboxEngine) -> list[Problem]:
    problems = []
    for default, most in (("timeout_s", "max_timeout_s"), ("memory_mb", "max_memory_mb")):
        given, limit = getattr(engine, default), getattr(engine, most)
        if given > limit:
            message = f"is more than {key}.{most}={limit:g}"
            problems.append(Problem(f"{key}.{default}", given, message, f"set both, or at most {limit:g}"))
    for language, command in engine.languages.items():
        if language != "python" and "{file}" not in command:
            hint = f"such as '{language} {{file}}'"
            message = "says nowhere which file it runs: the program's is {file}"
            problems.append(Problem(f"{key}.languages.{language}", command, message, hint))
    return problems + [
        Problem(f"{key}.preload", module, "is no name of a module", "such as math")
        for module in engine.preload
        if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", module)
    ]
