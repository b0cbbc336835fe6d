"""`matrix stop_cluster`."""

from __future__ import annotations

import sys

from matrix.api import Cli
from matrix.commands.arguments import split

HELP = """\
usage: matrix stop_cluster

Stop the local cluster that matrix deploy_applications started, with all its apps. Exit code 1 if there is none.
"""


def main(arguments: list[str]) -> int:
    """Run it; returns the exit code."""
    split(arguments, {}, overrides=False)
    if Cli().stop_cluster():
        print("stopped")
        return 0
    print("there is no cluster on this machine that matrix keeps", file=sys.stderr)
    return 1
