"""Affinity of sessions and the prefix cache: `python benchmarks/agents/prefix.py [--repeat 3] [--vllm] [--quick]`.

Conversations that grow: each turn sends all of what was said. With `workload.affinity=true` the turns of a row go to
the same replica, unless it has far more to do than the others; without, to the one with least to do. Measured: the
share of the prompts' tokens that replicas had in their prefix caches, generated tokens a second, and how many turns
went to another replica than the one before.

- By default, over four replicas of the simulated engine (`engine.prefix_cache_tokens`), processes of their own without
  Ray: a whole prompt takes 0.35 s, at most 16 requests run at a time in a replica. Caches hold all conversations under
  way twice over, or half of a replica's share (`tight`). Rows ask again at once, or after 2 s in the mean (`waits`), as
  with tools: without affinity a row that asks at once often finds the replica that has just answered it, which has a
  place more than the others.
- With `--vllm`, over two real replicas of vLLM with SmolLM2-135M on the CPU, deployed by the run itself: few rows,
  since two engines share two cores. The caches are new in each run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import meter
import tables
from engines import Engines
from overhead import CORES, ROOT, environment_of_teams, model_at
from processes import say

HERE = Path(__file__).parent
REPLICAS = 4
IN_FLIGHT = 128
TURNS = 8
SAID = "And what comes next? Take the number that you had and add the number of the row to it; say the sum. " * 4
COLUMNS = {
    "hit_rate": ("prompt tokens cached", ".1%"),
    "tokens_per_s": ("tokens/s", ",.0f"),
    "rows_per_s": ("rows/s", ",.2f"),
    "moved": ("turns that moved", ".1%"),
    "replicas": ("replicas that answered", ",.0f"),
    "prompt_tokens": ("prompt tokens", ",.0f"),
    "others": ("cores engines and others took", ".2f"),
}
# About 1,400 tokens at its last turn, 700 in the middle.
ROOMY, TIGHT = IN_FLIGHT * 1_400 * 2, IN_FLIGHT * 1_400 // REPLICAS // 2
SETTINGS = {
    "roomy, no waits": (ROOMY, 0.0),
    "roomy, waits": (ROOMY, 2.0),
    "tight, no waits": (TIGHT, 0.0),
    "tight, waits": (TIGHT, 2.0),
}


def simulated(affinity: bool, room: int, wait_s: float, rows: int) -> dict[str, float]:
    """One run over four replicas of the simulated engine."""
    engine = {"first_token_s": 0.35, "token_s": 0.005, "output_tokens": 64, "max_running": 16}
    with Engines({**engine, "prefix_cache_tokens": room}, REPLICAS) as engines:
        urls = f"[{','.join(engines.urls)}]"
        limits = [f"workload.concurrency={IN_FLIGHT}", f"workload.max_in_flight={IN_FLIGHT}"]
        return run(affinity, rows, TURNS, 2, wait_s, [*model_at(urls), *limits], engines.pids)


def vllm(affinity: bool, rows: int) -> dict[str, float]:
    """One run over two replicas of vLLM."""
    overrides = [
        *("engine=vllm", "engine.replicas=2", "engine.device=cpu", "engine.cpus=1", "model=smollm2"),
        *("+engine.args.enable-prompt-tokens-details=true", "+engine.args.enable-prefix-caching=true"),
        *("+engine.args.enforce-eager=true", "workload.concurrency=8", "workload.max_in_flight=8"),
        *("sampling.max_tokens=16", "sampling.temperature=0", "+sampling.extra.ignore_eos=true"),
    ]
    return run(affinity, rows, 5, 1, 0.0, overrides, [])


def run(
    affinity: bool, rows: int, turns: int, system: int, wait_s: float, model: list[str], beside: list[int]
) -> dict[str, float]:
    """One run; its figures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        marks, run_dir, data = folder / "marks", folder / "run", folder / "data.jsonl"
        marks.mkdir()
        with data.open("w") as file:
            for row in range(rows):
                said = [f"Row {row}, turn {turn}. {SAID}" for turn in range(turns)]
                file.write(json.dumps({"said": said, "system": system, "wait_s": wait_s}) + "\n")
        overrides = [
            *("agents=custom", f"agents.file={HERE / 'prefix_team.py'}", "agents.repeat=false", *model),
            *(f"agents.order=[{','.join(['talker'] * turns)}]", f"dataset.path={data}", "dataset.id_key=null"),
            *("tracker=none", f"run.dir={run_dir}", f"workload.affinity={affinity}".lower()),
        ]
        command = [sys.executable, str(ROOT / "run.py"), *overrides]
        used = meter.run(command, folder, environment_of_teams(marks), beside=beside)
        summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
        asked = [[entry["calls"][0]["endpoint"] for entry in row["history"]] for row in read(run_dir / "rows.jsonl")]
        began = min(float(mark.read_text()) for mark in marks.iterdir())
        ended = max(part.stat().st_mtime for part in (run_dir / "rows").glob("part-*.jsonl"))
    if summary["rows"]["ok"] != rows:
        raise SystemExit(f"{rows} rows went in, {summary['rows']} came out")
    tokens = summary["tokens"]
    return {
        "hit_rate": tokens["cached_prompt"] / tokens["prompt"],
        "tokens_per_s": tokens["completion"] / (ended - began),
        "rows_per_s": rows / (ended - began),
        # To another replica than the turn before.
        "moved": sum(a != b for row in asked for a, b in pairwise(row)) / sum(len(row) - 1 for row in asked),
        "replicas": len({url for row in asked for url in row}),
        "prompt_tokens": tokens["prompt"],
        "others": used.others(began, ended),
    }


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a run."""
    with path.open("rb") as lines:
        return [json.loads(line) for line in lines]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--vllm", action="store_true", help="the real engine instead")
    parser.add_argument("--quick", action="store_true", help="one round of a quarter of the rows")
    parser.add_argument("--json", type=Path, help="file for the raw figures")
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    settings: dict[str, tuple[int, float] | None] = {"2 x vLLM": None} if options.vllm else {**SETTINGS}
    results: dict[str, tables.Runs] = {}
    for number in range(1 if options.quick else options.repeat):
        for title, setting in settings.items():
            for affinity in (True, False)[:: -1 if number % 2 else 1]:
                name = f"affinity {'on' if affinity else 'off'}"
                say(f"round {number + 1}: {title}: {name}")
                scale = 4 if options.quick else 1
                found = simulated(affinity, *setting, 1024 // scale) if setting else vllm(affinity, 32 // scale)
                say(f"    {', '.join(f'{key} {value:,.3f}' for key, value in found.items())}")
                results.setdefault(title, {}).setdefault(name, []).append(found)
    for title, runs in results.items():
        tables.show(title, COLUMNS, runs)
        print(f"on against off: {tables.ratio(runs['affinity on'], runs['affinity off'], 'tokens_per_s')} the tokens/s")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
