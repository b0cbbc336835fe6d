"""`matrix convert_images`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from matrix.agents.teams.swe.images import IMAGE, conversions, convert
from matrix.commands.arguments import number, split
from matrix.data.readers import load
from matrix.pipelines.prompt import compile_template

HELP = """\
usage: matrix convert_images folder=FOLDER dataset=swe_bench_verified [--plan] [image=TEMPLATE] [tries=3] [pause_s=600]
                             [OVERRIDES of dataset]

Make files for apptainer of SWE-bench's container images, one for each row of the data set: FOLDER/ID.sif. Those that
are there stay, so the same command goes on where it was ended. The exit code is 1 if some couldn't be made.

  folder   gets the files
  dataset  swe_bench_verified, swe_bench_lite, or any with the column instance_id
  --plan   print the commands and start nothing
  image    a row's image in a registry, a Jinja template over its columns; otherwise as SWE-bench names them
  tries    of each image
  pause_s  seconds before another try; a registry limits how often strangers may ask (apptainer registry login helps)

  matrix convert_images folder=images dataset=swe_bench_verified --plan
  matrix convert_images folder=images dataset=swe_bench_lite dataset.limit=10
"""

_OWN = {"folder": None, "dataset": None, "image": IMAGE, "tries": "3", "pause_s": "600"}


def main(arguments: list[str]) -> int:
    """Run it; returns the exit code."""
    from matrix.compose import compose_spec

    plan = "--plan" in arguments
    typed = [argument for argument in arguments if argument != "--plan"]
    own, overrides = split(typed, _OWN, overrides=True, switches=("--plan",))
    tries, pause_s = int(number(own, "tries")), number(own, "pause_s")
    image = compile_template(own["image"], "image")
    # All of a config but the data set is beside the point here: an engine that needs nothing of this machine.
    engine = ["tracker=none", "engine=openai", "engine.api_key_env=null"]
    spec = compose_spec([*engine, f"dataset={own['dataset']}", *overrides])
    wanted = list(conversions(load(spec.dataset).examples, image, Path(own["folder"])))
    if plan:
        for one in wanted:
            print(f"{shlex.join(one.command)} && mv {shlex.quote(str(one.partial))} {shlex.quote(str(one.file))}")
        return 0
    failed = convert(wanted, tries=tries, pause_s=pause_s, say=lambda text: print(text, file=sys.stderr))
    missing = f"; these couldn't be made: {', '.join(failed)}" if failed else ""
    print(f"{len(wanted) - len(failed)} of {len(wanted)} files are there{missing}")
    return 1 if failed else 0
