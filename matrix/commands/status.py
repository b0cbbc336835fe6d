"""`matrix status`."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from matrix.api import Cli
from matrix.commands.arguments import split
from matrix.errors import ClusterError

HELP = """\
usage: matrix status [--json] [--key] [cluster.address=IP:PORT] [cluster.token_path=FILE]

The cluster's nodes, its apps with their replicas, and the front door.

  --json   the same as JSON
  --key    only the key that all apps ask for
"""


_SWITCHES = ("--json", "--key")


def main(arguments: list[str]) -> int:
    """Run it; returns the exit code."""
    switches = [argument for argument in arguments if argument in _SWITCHES]
    own, _ = split([a for a in arguments if a not in switches], CLUSTER, overrides=False, switches=_SWITCHES)
    with connected(own) as cli:
        if "--key" in switches:
            print(cli.api_key())
            return 0
        found = cli.status()
    if "--json" in switches:
        print(json.dumps(found, indent=2))
    else:
        _show(found)
    return 0


CLUSTER = {"cluster.address": "auto", "cluster.token_path": ""}
"""Arguments that say which cluster."""


def connected(own: dict[str, str]) -> Cli:
    """The cluster that the arguments name.

    Raises:
        ClusterError: There is none on this machine.
    """
    from matrix.cluster.kept import find_kept

    if own["cluster.address"] == "auto" and find_kept() is None:
        message = "there is no cluster on this machine that matrix keeps: matrix deploy_applications starts one"
        raise ClusterError(f"{message}; for another one: cluster.address=IP:PORT")
    return Cli(own["cluster.address"], own["cluster.token_path"] or None)


def _show(found: dict[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
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
