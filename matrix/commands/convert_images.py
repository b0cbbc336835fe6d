"""`matrix convert_images`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from matrix.agents.services import container_templates
from matrix.agents.teams.swe.images import conversions, convert
from matrix.agents.teams.swe.roles import SHELL
from matrix.commands.arguments import number, split
from matrix.data.readers import load
from matrix.errors import ConfigError, Problem
from matrix.spec import RunSpec
from matrix.spec.agents import ContainerTool

HELP = """\
usage: matrix convert_images folder=FOLDER [--plan] [tries=3] [pause_s=600] [OVERRIDES]

Make files for apptainer of the container images that a run with these overrides would use, one for each row of its data
set: FOLDER/ID.sif. Those that are there stay, so that the same command goes on where it was ended. Without overrides:
recipes=swe_bench_verified. The exit code is 1 if some couldn't be made.

  folder   gets the files
  --plan   print the commands and start nothing
  tries    of each image
  pause_s  seconds before another try; registries limit how often strangers may ask (apptainer registry login helps)

  matrix convert_images folder=/data/images --plan
  matrix convert_images folder=/data/images recipes=swe_bench_lite dataset.limit=10

A run with them, on a machine without podman:

  python run.py recipes=swe_bench_verified apps.box.engine.backend=apptainer \\
      'agents.tools.shell.image="/data/images/{{ instance_id }}.sif"'
"""

_OWN = {"folder": None, "tries": "3", "pause_s": "600"}


def main(arguments: list[str]) -> int:
    """Run it; returns the exit code."""
    from matrix.compose import compose_spec

    own, overrides = split([one for one in arguments if one != "--plan"], _OWN, overrides=True, switches=("--plan",))
    tries, pause_s = int(number(own, "tries")), number(own, "pause_s")
    # Where it would run doesn't matter: nothing is started of it.
    chosen = overrides or ["recipes=swe_bench_verified"]
    spec = compose_spec([*chosen, "tracker=none", "plan=true"])
    image, _ = container_templates(SHELL, _shell(spec))
    wanted = list(conversions(load(spec.dataset).examples, image, Path(own["folder"])))
    if "--plan" in arguments:
        for one in wanted:
            print(f"{shlex.join(one.command)} && mv {shlex.quote(str(one.partial))} {shlex.quote(str(one.file))}")
        return 0
    failed = convert(wanted, tries=tries, pause_s=pause_s, say=lambda text: print(text, file=sys.stderr))
    there = len(wanted) - len(failed)
    print(f"{there} of {len(wanted)} are there" + (f"; these aren't: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def _shell(spec: RunSpec) -> ContainerTool:
    tool = spec.agents.tools.get(SHELL) if spec.agents else None
    if not isinstance(tool, ContainerTool):
        hint = "a recipe such as recipes=swe_bench_verified has it"
        problem = Problem(f"agents.tools.{SHELL}", None, "this run has no such tool of kind container", hint)
        raise ConfigError([problem], "Nothing was started.")
    return tool
