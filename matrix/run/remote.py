"""A command of the terminal that runs inside a cluster: handed over, followed, and the light switched off after it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from matrix.cluster import launch
from matrix.cluster.folder import ClusterFolder
from matrix.cluster.follow import follow, submit, withdraw
from matrix.cluster.inside import inside
from matrix.cluster.waiting import LiveLine
from matrix.errors import ConfigError, Problem
from matrix.run.rundir import place
from matrix.spec import ClusterSpec, RunSpec, SlurmCluster


def elsewhere(cluster: ClusterSpec) -> SlurmCluster | None:
    """The cluster that a command has to be handed over to; None if it may run here."""
    return cluster if isinstance(cluster, SlurmCluster) and inside() is None else None


def run_there(
    cluster: SlurmCluster,
    argv: Sequence[str],
    run_dir: str = "",
    *,
    detach: bool = False,
    start: bool = True,
    stays: bool = False,
) -> int:
    """Run a command of `matrix` inside a cluster.

    Args:
        cluster: The cluster.
        argv: What `matrix` is called with.
        run_dir: Where the command writes, if it is a run or a sweep.
        detach: Return at once.
        start: Start the cluster if it isn't there.
        stays: One that is started for the command stays when that has ended.

    Returns:
        The command's exit code; 0 if it was only handed over.

    Raises:
        ClusterError: The cluster can't be had, or was lost.
    """
    live, keys = LiveLine(), list[tuple[ClusterFolder, str]]()

    def hand_over(folder: ClusterFolder) -> None:
        keys.append((folder, submit(folder, argv, run_dir)))

    def take_back() -> None:
        for folder, key in keys:
            withdraw(folder, key)

    if start:
        kept = {"for_runs": not stays, "grows": False, "wait": not detach}
        launch.start(cluster, live, **kept, hand_over=hand_over, take_back=take_back)
    else:
        launch.find_up(cluster, live, hand_over)
    ((folder, key),) = keys
    if cluster.executor == "debug":
        launch.run_here(folder, cluster)
    elif detach:
        live.say(f"It runs inside the cluster {cluster.id}. See it: matrix attach {key}")
        return 0
    code = follow(folder, key, live)
    switch_off(folder, live)
    return code


def switch_off(folder: ClusterFolder, live: LiveLine) -> None:
    """Wait for the end of a cluster that ends with its last command."""
    if not folder.is_current:
        return
    ended = all(command.has_ended for command in folder.commands())
    if folder.cluster().for_runs and ended:
        launch.end(folder, live)


def with_run_dir(spec: RunSpec, arguments: Sequence[str]) -> tuple[list[str], str]:
    """The arguments of a single run with its run dir settled, so that whoever starts it again resumes it."""
    path = str(place(spec).path)
    kept = [a for a in arguments if not a.startswith(("run.dir=", "run.detach="))]
    return [*kept, f"run.dir={_quoted(path)}"], path


def with_sweep_dir(spec: RunSpec, arguments: Sequence[str]) -> tuple[list[str], str]:
    """The same for a sweep.

    Raises:
        ConfigError: The folder of the sweep is to be found out by Hydra, each time anew.
    """
    key = "hydra.sweep.dir"
    given = next((a.partition("=")[2] for a in arguments if a.startswith(f"{key}=")), None)
    if given is not None and "${" in given:
        raise ConfigError([Problem(key, given, "would be another folder whenever the sweep goes on", f"{key}=FOLDER")])
    default = Path(spec.run.root).expanduser() / "sweeps" / time.strftime("%Y%m%d-%H%M%S")
    path = str(Path(given.strip("'\"") if given else default).expanduser().absolute())
    kept = [a for a in arguments if not a.startswith((f"{key}=", "run.detach="))]
    return [*kept, f"{key}={_quoted(path)}"], path


def _quoted(path: str) -> str:
    """As Hydra takes it for one string, whatever is in it."""
    return "'" + path.replace("'", "\\'") + "'"
