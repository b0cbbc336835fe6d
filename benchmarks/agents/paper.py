"""What row-level scheduling gives, and what peers give: `python benchmarks/agents/paper.py [--repeat 3] [--quick]`.

After the three comparisons of "Matrix: Peer-to-Peer Multi-Agent Synthetic Data Generation Framework" (arXiv
2511.21686). It sets a peer-to-peer runtime that schedules rows against schedulers of batches and the threads of one
node; what it leaves out is a baseline that schedules rows without peers. Here are all, at the same rows and model:

- batches: a barrier after each step of a batch, one batch under way, or four of a quarter of the size;
- asyncio: many drivers in one process, a row each, plain aiohttp, nothing kept;
- matrix: `python run.py` with one driver (in-process), and with two on Ray.

The rows (`paper_rows.py`): web documents of which 90 % are filtered at the first step; conversations of 4 turns at the
median and 40 at the 99th percentile; an agent with tools in slow containers, which are sleeps. The model is the
simulated engine, which works on 128 requests at a time; 512 rows are in flight.

`model busy` is the share of the model's places that worked, from the first row's begin to the last one's end. No
scheduler can have more than 100 %; with the tail of the last rows, or too few rows that need the model, less.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
from pathlib import Path

import meter
import paper_rows
import tables
from engines import Engines
from overhead import CORES, ROOT, environment_of_teams, model_at
from processes import say

HERE = Path(__file__).parent
PLACES = 128
IN_FLIGHT = 512
ENGINE = {"first_token_s": 0, "token_s": paper_rows.TOKEN_S, "output_tokens": 100_000, "max_running": PLACES}
ROWS = {"filtered": 8_000, "conversation": 2_000, "containers": 1_500}
CONTESTANTS = ("batches, one", "batches, four", "asyncio", "matrix, 1 driver", "matrix, 2 drivers")
COLUMNS = {
    "rows_per_s": ("rows/s", ",.1f"),
    "busy": ("model busy", ".1%"),
    "seconds": ("seconds", ",.1f"),
    "cpu_ms": ("CPU ms a step", ".3f"),
    "others": ("cores engines and others took", ".2f"),
}


def measure(who: str, scenario: str, rows: int) -> dict[str, float]:
    """One contestant, once."""
    todo = [paper_rows.steps(scenario, number) for number in range(rows)]
    model_s = sum(paper_rows.seconds(step) for row in todo for step in row if step[0] == "model")
    with Engines(ENGINE) as engines, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if who.startswith("matrix"):
            used, began, ended = matrix(folder, scenario, rows, engines, int(who.split()[1]))
        else:
            flags = ["--in-flight", str(IN_FLIGHT), "--side-by-side", "4" if who.endswith("four") else "1"]
            how = "rows" if who == "asyncio" else "batches"
            script = [str(HERE / "paper_plain.py"), how, scenario, str(rows), engines.urls[0], *flags]
            used = meter.run([sys.executable, *script], folder, beside=engines.pids)
            said = json.loads(used.stdout.splitlines()[-1])
            began, ended = said["began"], said["ended"]
        asked = engines.count()
    due = sum(step[0] == "model" for row in todo for step in row)
    if asked != due:
        raise SystemExit(f"the model was asked {asked:.0f} times where {rows} rows ask {due} times")
    return {
        "rows_per_s": rows / (ended - began),
        "seconds": ended - began,
        "busy": model_s / PLACES / (ended - began),
        "cpu_ms": used.cpu_s(began, ended) / sum(map(len, todo)) * 1e3,
        "others": used.others(began, ended),
    }


def matrix(folder: Path, scenario: str, rows: int, engines: Engines, drivers: int) -> tuple[meter.Used, float, float]:
    """Ours: what it used, when it began and ended."""
    marks, run_dir, data = folder / "marks", folder / "run", folder / "data.jsonl"
    marks.mkdir()
    with data.open("w") as file:
        file.writelines(json.dumps({"scenario": scenario}) + "\n" for _ in range(rows))
    overrides = [
        *("agents=custom", f"agents.file={HERE / 'paper_team.py'}", "agents.order=[worker]", "agents.ends=[worker]"),
        *model_at(engines.urls[0]),
        *(
            f"dataset.path={data}",
            "dataset.id_key=null",
            "tracker=none",
            f"workload.drivers={drivers}",
            "agents.limits.turns=1000",
        ),
        *(f"workload.concurrency={IN_FLIGHT}", f"workload.max_in_flight={IN_FLIGHT}", f"run.dir={run_dir}"),
    ]
    command = [sys.executable, str(ROOT / "run.py"), *overrides]
    used = meter.run(command, folder, environment_of_teams(marks), beside=engines.pids)
    began = min(float(mark.read_text()) for mark in marks.iterdir())
    return used, began, max(part.stat().st_mtime for part in (run_dir / "rows").glob("part-*.jsonl"))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="times the number of rows")
    parser.add_argument("--quick", action="store_true", help="one round of a quarter of the rows")
    parser.add_argument("--scenarios", type=lambda text: text.split(","), default=[*ROWS])
    parser.add_argument("--contestants", type=lambda text: text.split("+"), default=[""], help="beginnings, by +")
    parser.add_argument("--json", type=Path, help="file for the raw figures")
    options = parser.parse_args()
    if options.quick:
        options.repeat, options.scale = 1, 0.25
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    results: dict[str, tables.Runs] = {}
    chosen = [who for who in CONTESTANTS if any(who.startswith(one) for one in options.contestants)]
    for number, scenario in itertools.product(range(options.repeat), options.scenarios):
        rows = int(ROWS[scenario] * options.scale)
        for who in chosen[:: -1 if number % 2 else 1]:
            say(f"{number + 1}/{options.repeat} {scenario}, {rows} rows: {who}")
            found = measure(who, scenario, rows)
            say(f"    {', '.join(f'{key} {value:,.3f}' for key, value in found.items())}")
            results.setdefault(scenario, {}).setdefault(who, []).append(found)
    show(results, options.scale)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


def show(results: dict[str, tables.Runs], scale: float) -> None:
    """Print the tables, and ours against the others."""
    for scenario, runs in results.items():
        tables.show(f"{scenario}, {int(ROWS[scenario] * scale):,} rows", COLUMNS, runs)
        for ours in (who for who in runs if who.startswith("matrix")):
            for who, theirs in runs.items():
                if not who.startswith("matrix"):
                    print(f"{ours} against {who}: {tables.ratio(runs[ours], theirs, 'rows_per_s')} the rows/s")


if __name__ == "__main__":
    main()
