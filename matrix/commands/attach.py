"""`matrix attach`."""

from __future__ import annotations

import sys

from matrix.cluster.folder import find, find_all, root_of
from matrix.cluster.follow import find_command, follow
from matrix.cluster.waiting import LiveLine
from matrix.commands import clusters
from matrix.commands.arguments import split
from matrix.errors import ConfigError, Problem
from matrix.run.remote import switch_off

HELP = """\
usage: matrix attach RUN [cluster.id=NAME] [cluster.root=FOLDER]

Follow a run inside a cluster again, from the beginning of its output; the exit code is the run's. RUN is its run dir,
its sweep's, or its key (matrix status lists them). Ctrl-C asks the run to stop, a second one leaves it alone.
"""


def main(arguments: list[str]) -> int:
    """Run it; returns the exit code."""
    names = [argument for argument in arguments if "=" not in argument and not argument.startswith("-")]
    own, _ = split([a for a in arguments if a not in names], clusters.OWN, overrides=False)
    if len(names) != 1:
        raise ConfigError(
            [Problem("RUN", " ".join(names) or None, "give one run: its run dir or key")], "Nothing done."
        )
    root = root_of(own["cluster.root"])
    one = find(root / own["cluster.id"]) if own["cluster.id"] else None
    folder, command = find_command([one] if one else find_all(root), names[0])
    live = LiveLine()
    if command.has_ended:
        print(f"{command.key} has ended: {command.phase}", file=sys.stderr)
    code = follow(folder, command.key, live)
    switch_off(folder, live)
    return code
