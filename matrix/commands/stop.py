"""`matrix stop_cluster`."""

from __future__ import annotations

import sys

from matrix.api import Cli
from matrix.cluster import launch
from matrix.cluster.kept import find_kept
from matrix.cluster.waiting import LiveLine
from matrix.commands import clusters
from matrix.commands.arguments import split
from matrix.errors import ClusterError

HELP = """\
usage: matrix stop_cluster [cluster.id=NAME] [cluster.root=FOLDER]

Stop a cluster with all that runs on it: the one of jobs (Slurm's, or cluster.executor=local) with this id, or the only
one that there is; cluster.id=local is the one of this machine. Exit code 1 if there is none.
"""


def main(arguments: list[str]) -> int:
    """Run it; returns the exit code."""
    own, _ = split(arguments, clusters.OWN, overrides=False)
    here = find_kept()
    if own["cluster.id"] == "local":
        folder = None
    else:
        folder = clusters.named(own)
        if folder is not None and here is not None and not own["cluster.id"]:
            raise ClusterError(f"there are several clusters: give cluster.id=local or cluster.id={folder.home.name}")
    if folder is not None:
        launch.stop(folder, LiveLine())
    elif here is None:
        print("there is no cluster here that matrix keeps", file=sys.stderr)
        return 1
    else:
        Cli().stop_cluster()
        print("stopped")
    return 0
