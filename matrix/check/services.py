"""Rules on engines without a model: limits that contradict each other, and what this machine lacks."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from matrix.errors import AppError, Problem
from matrix.spec import ClusterSpec, ContainerEngine, EngineSpec, LocalCluster, SandboxEngine, ServiceEngine

_PROGRAMS = {"rootfs": "bwrap", "podman": "podman", "apptainer": "apptainer"}


def check_service(prefix: str, engine: ServiceEngine) -> list[Problem]:
    """What can be said of it wherever it is to run.

    Args:
        prefix: What stands before `engine` in keys: empty, or `apps.NAME.`.
        engine: The engine.
    """
    key = f"{prefix}engine"
    return _sandbox(key, engine) if isinstance(engine, SandboxEngine) else _container(key, engine)


def check_host(prefix: str, cluster: ClusterSpec, engine: EngineSpec) -> list[Problem]:
    """What it needs of the machine that it runs on, where that is this one.

    Args:
        prefix: As for `check_service`.
        cluster: Where it is to run.
        engine: The engine.
    """
    if not isinstance(cluster, LocalCluster):
        return []
    match engine:
        case SandboxEngine():
            return _isolates(f"{prefix}engine", engine)
        case ContainerEngine(backend="rootfs") if shutil.which("bwrap") is not None:
            return _images(f"{prefix}engine", engine)
        case ContainerEngine() if shutil.which(program := _PROGRAMS[engine.backend]) is None:
            message = f"this machine has no {program}"
            return [Problem(f"{prefix}engine.backend", engine.backend, message, "install it, or another backend")]
        case _:
            return []


def _isolates(key: str, engine: SandboxEngine) -> list[Problem]:
    # Loads the sandbox.
    from matrix.sandbox.jail import check_host as check_this

    problems = []
    try:
        check_this()
    except AppError as error:
        problems.append(Problem(f"{key}.kind", engine.kind, str(error)))
    if engine.python is not None and not os.access(Path(engine.python).expanduser(), os.X_OK):
        hint = "an interpreter of this machine, or null for the one that matrix runs in"
        problems.append(Problem(f"{key}.python", engine.python, "no such program", hint))
    if engine.root is not None and not Path(engine.root).expanduser().is_dir():
        hint = "a folder with a system in it, or null for this machine's /usr"
        problems.append(Problem(f"{key}.root", engine.root, "no such folder", hint))
    return problems


def _container(key: str, engine: ContainerEngine) -> list[Problem]:
    problems = []
    if engine.any_image and engine.backend == "rootfs":
        hint = f"{key}.images={{NAME: FOLDER}}, or {key}.backend=podman"
        problems.append(Problem(f"{key}.any_image", True, "rootfs has folders of the host, and no registries", hint))
    if not engine.images and not engine.any_image:
        problems.append(Problem(f"{key}.images", "{}", "there is nothing to hand out", f"{key}.images={{NAME: IMAGE}}"))
    if engine.grpc:
        problems.append(Problem(f"{key}.grpc", True, "containers are asked for by HTTP", f"{key}.grpc=false"))
    return problems + [
        Problem(f"{key}.mounts", path, "is no path in a container", "/data: /folder/of/the/host")
        for path in engine.mounts
        if not path.startswith("/")
    ]


def _images(key: str, engine: ContainerEngine) -> list[Problem]:
    # Loads the sandbox.
    from matrix.containers.rootfs import missing_image

    hint = f"a folder or archive of this machine, or {key}.images.NAME=host for its own programs"
    return [
        Problem(f"{key}.images.{name}", image, problem, hint)
        for name, image in engine.images.items()
        if (problem := missing_image(image)) is not None
    ]


def _sandbox(key: str, engine: SandboxEngine) -> list[Problem]:
    # Loads the sandbox.
    from matrix.sandbox.pool import MAIN

    problems = []
    for default, most in (("timeout_s", "max_timeout_s"), ("memory_mb", "max_memory_mb")):
        given, limit = getattr(engine, default), getattr(engine, most)
        if given > limit:
            message = f"is more than {key}.{most}={limit:g}"
            problems.append(Problem(f"{key}.{default}", given, message, f"set both, or at most {limit:g}"))
    for language, command in engine.languages.items():
        if command != "python" and not re.search(MAIN, command):
            message = "names no file main.ENDING, which is what the program is written to"
            problems.append(Problem(f"{key}.languages.{language}", command, message, f"{language} main.{language}"))
    return problems + [
        Problem(f"{key}.preload", module, "is no name of a module", "such as math")
        for module in engine.preload
        if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", module)
    ]
