"""`matrix status`."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from matrix.api import Cli
from matrix.cluster import report
from matrix.cluster.folder import ClusterFolder
from matrix.cluster.inside import inside
from matrix.cluster.kept import find_kept
from matrix.commands import clusters
from matrix.commands.arguments import split
from matrix.commands.jobs_table import show_jobs
from matrix.errors import AppError, ClusterError

HELP = """\
usage: matrix status [--json] [--key] [cluster.id=NAME] [cluster.root=FOLDER]
                     [cluster.address=IP:PORT] [cluster.token_path=FILE]

A cluster's nodes, its apps with their replicas, and the front door; of one of jobs also the head, the workers with what
Slurm says of their jobs, and the runs inside. cluster.id=local is the one of this machine; without an id the only one.

  --json   the same as JSON
  --key    only the key that all apps ask for
"""


_SWITCHES = ("--json", "--key")


def main(arguments: list[str]) -> int:
    """Run it; returns the exit code."""
    switches = [argument for argument in arguments if argument in _SWITCHES]
    own, _ = split([a for a in arguments if a not in switches], CLUSTER, overrides=False, switches=_SWITCHES)
    folder = of_jobs(own)
    if folder is not None and "--key" in switches:
        if not folder.key.is_file():
            raise AppError("no app was ever deployed on this cluster, so that it has no key yet")
        print(folder.key.read_text())
        return 0
    if folder is not None:
        found = report.describe(folder)
    else:
        with connected(own) as cli:
            if "--key" in switches:
                print(cli.api_key())
                return 0
            found = cli.status()
    if "--json" in switches:
        print(json.dumps(found, indent=2))
        return 0
    if folder is not None:
        show_jobs(found)
    _show(found)
    return 0


CLUSTER = {"cluster.address": "auto", "cluster.token_path": "", **clusters.OWN}
"""Arguments that say which cluster."""


def of_jobs(own: dict[str, str]) -> ClusterFolder | None:
    """The cluster of jobs that the arguments name; None if they mean another kind.

    Raises:
        ClusterError: There are several, and none was named; or there is none of that name.
    """
    if own["cluster.address"] != "auto" or own["cluster.id"] == "local":
        return None
    folder = clusters.named(own)
    if folder is not None and not own["cluster.id"] and inside() is None and find_kept() is not None:
        raise ClusterError(f"there are several clusters: give cluster.id=local or cluster.id={folder.home.name}")
    return folder


def connected(own: dict[str, str]) -> Cli:
    """The cluster that the arguments name.

    Raises:
        ClusterError: There is none on this machine.
    """
    here = inside()
    if here is not None:
        return Cli.of(here.spec())
    if own["cluster.address"] == "auto" and find_kept() is None:
        message = "there is no cluster on this machine that matrix keeps: matrix deploy_applications starts one"
        raise ClusterError(f"{message}; for another one: cluster.address=IP:PORT")
    return Cli(own["cluster.address"], own["cluster.token_path"] or None)


def _show(found: dict[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    if "head" in found and found["phase"] != "up":
        return
    for node in found["nodes"]:
        free = ", ".join(f"{node['free'].get(name, 0):g} of {total:g} {name}" for name, total in node["total"].items())
        console.print(f"node {node['name']}: free {free}")
    door = found["front_door"]
    console.print(f"front door: {door}/v1" if door else "front door: none")
    if not found["apps"]:
        console.print("no apps")
        return
    table = Table()
    for column in ("app", "engine", "model", "state", "replicas", "running", "waiting"):
        table.add_column(column, overflow="fold")
    for app in found["apps"]:
        limits = f"{app['ready']}" + (
            f" ({app['wanted']} to {app['max']})" if app["wanted"] != app["max"] else f" of {app['max']}"
        )
        busy = [f"{sum(replica[key] for replica in app['replicas']):g}" for key in ("running", "waiting")]
        table.add_row(app["name"], app["engine"], app["model"], app["phase"], limits, *busy)
    console.print(table)
    for app in found["apps"]:
        for replica in app["replicas"]:
            last = replica["detail"].splitlines()[-1].strip() if replica["detail"] else ""
            where = " ".join(filter(None, (replica["url"], replica["grpc_url"])))
            console.print(f"  {app['name']} {replica['id']}: {where or last}", markup=False)
