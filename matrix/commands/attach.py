"""`matrix attach`."""

from __future__ import annotations

import sys

from matrix.cluster.folder import find_old, root_of
from matrix.cluster.follow import find_command, follow
from matrix.cluster.waiting import LiveLine
from matrix.commands import clusters
from matrix.commands.arguments import split
from matrix.errors import ConfigError, Problem
from matrix.run.remote import switch_off

HELP = """\
usage: matrix attach RUN [cluster.id=NAME] [cluster.root=FOLDER]

Follow a run inside a cluster again, from the beginning of its output; the exit code is the run's. RUN is its run dir,
its sweep's, or its key (matrix status lists them), also after the end of its cluster. Ctrl-C asks the run to stop, a
second one leaves it alone.
"""


def main(arguments: list[str]) -> int:
    """Run it; returns the exit code."""
    names = [argument for argument in arguments if "=" not in argument and not argument.startswith("-")]
    own, _ = split([a for a in arguments if a not in names], clusters.OWN, overrides=False)
    if len(names) != 1:
        raise ConfigError(
            [Problem("RUN", " ".join(names) or None, "give one run: its run dir or key")], "Nothing done."
        )
    folder, command = find_command(find_old(root_of(own["cluster.root"]), own["cluster.id"]), names[0])
    live = LiveLine()
    if command.has_ended:
        print(f"{command.key} has ended: {command.phase}", file=sys.stderr)
    code = follow(folder, command.key, live)
    switch_off(folder, live)
    return code
