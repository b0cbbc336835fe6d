"""`matrix swe_predictions`."""

from __future__ import annotations

import sys
from pathlib import Path

import orjson
import yaml

from matrix.agents.teams.swe.predictions import predictions
from matrix.commands.arguments import split
from matrix.errors import ConfigError, DataError, Problem
from matrix.show.find import find_run

HELP = """\
usage: matrix swe_predictions RUN [output=FILE] [model=NAME] [trial=N]

Write what a run with agents=swe handed in as SWE-bench's harness takes it: JSON with instance_id, model_name_or_path
and model_patch for each instance, by its id. Rows that handed in nothing have an empty patch. Also while the run goes.

  output   the file; otherwise RUN/predictions.json
  model    what the harness is to call the model; otherwise the run's model.name
  trial    of a run with several: 0, 1, ...; otherwise 0

  matrix swe_predictions outputs/swe-qwen3_235b/RUN
  python -m swebench.harness.run_evaluation --dataset_name princeton-nlp/SWE-bench_Verified --split test \\
      --predictions_path outputs/swe-qwen3_235b/RUN/predictions.json --run_id mine
"""

_OWN = {"output": "", "model": "", "trial": "0"}
_NOTHING = "Nothing was written."


def main(arguments: list[str]) -> int:
    """Run it; returns the exit code."""
    runs = [argument for argument in arguments if "=" not in argument and not argument.startswith("-")]
    own, _ = split([argument for argument in arguments if argument not in runs], _OWN, overrides=False)
    if len(runs) != 1:
        shown = " ".join(runs) or None
        raise ConfigError([Problem("RUN", shown, "give one run dir", "matrix swe_predictions RUN")], _NOTHING)
    if not own["trial"].isdecimal():
        raise ConfigError([Problem("trial", own["trial"], "should be a number from 0 on")], _NOTHING)
    run = find_run(Path(runs[0]))
    spec = run.path / "spec.yaml"
    name = own["model"] or (yaml.safe_load(spec.read_text())["model"]["name"] if spec.is_file() else "matrix")
    found = predictions(run.rows(), name, int(own["trial"]))
    if not found:
        raise DataError(f"{run.path}: has no rows of trial {own['trial']}")
    file = Path(own["output"] or run.path / "predictions.json")
    try:
        file.write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from error
    patches = sum(1 for one in found.values() if one["model_patch"])
    print(f"{file}: {len(found)} instances, {patches} with a patch", file=sys.stderr)
    return 0
