"""What rows on disk cost: `python benchmarks/journal.py [--rows 100000 1000000] [--repeat 3]`.

Each step in a fresh process, on rows of about 1 KB that come as far out of order as 2,000 requests in flight make it:

- append: microseconds of a row, and the longest of all, with the fsync every 5 seconds. Rows are made beforehand;
- resume: `done_keys`, the page cache warm;
- write_sorted: to `rows.jsonl` and to `rows.parquet`, the fsync at the end included;
- summarise: `read_rows` into the summary, which parses every row.

Memory is the highest resident set size of the step's process. `limit` reads the part and does nothing with it.
A million rows take about 3 GB of disk (`TMPDIR` says where) and a minute.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from matrix.data.journal import Journal
from matrix.data.parts import done_keys
from matrix.data.rows import Response, Row, Score
from matrix.data.sorting import read_rows, write_sorted
from matrix.pipelines.metrics import summarise

IN_FLIGHT = 2000
# Made ahead so that `append` alone is timed, and few enough to cost no memory.
BATCH = 1000

Figures = dict[str, float]


def main() -> None:
    """Measure and print a table and the raw figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        name, folder = arguments.step
        figures = STEPS[name](Path(folder), arguments.rows[0])
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({**figures, "RSS, MB": peak_mb}))
        return
    measured = [(rows, measure(rows)) for rows in arguments.rows for _ in range(arguments.repeat)]
    print(json.dumps(measured))
    for rows in arguments.rows:
        print(f"\n{rows:,} rows")
        for step in STEPS:
            runs = [figures[step] for count, figures in measured if count == rows]
            medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            print(f"  {step:22}", "   ".join(f"{key} {value:.4g}" for key, value in medians.items()))


def measure(rows: int) -> dict[str, Figures]:
    """Run every step once, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        return {name: run_step(name, folder, rows) for name in STEPS}


def run_step(name: str, folder: str, rows: int) -> Figures:
    """Run one step in a process of its own."""
    command = [sys.executable, __file__, "--step", name, folder, "--rows", str(rows)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    figures: Figures = json.loads(done.stdout)
    return figures


def append(run_dir: Path, rows: int) -> Figures:
    """Write the part, out of order."""
    chance = random.Random(0)
    order = sorted(range(rows), key=lambda index: index + chance.random() * IN_FLIGHT)
    spent = longest = 0.0
    with Journal(run_dir / "rows", "driver") as journal:
        for start in range(0, rows, BATCH):
            for row in [make_row(index) for index in order[start : start + BATCH]]:
                began = time.perf_counter()
                journal.append(row)
                took = time.perf_counter() - began
                spent += took
                longest = max(longest, took)
    size = journal.path.stat().st_size
    return {"us/row": spent / rows * 1e6, "longest, ms": longest * 1e3, "bytes/row": size / rows}


def limit(run_dir: Path, rows: int) -> Figures:
    """Read the part."""

    def read() -> int:
        with (run_dir / "rows" / "part-driver.jsonl").open("rb", buffering=0) as part:
            while part.read(1 << 20):
                pass
        return rows

    return timed(read, rows)


def resume(run_dir: Path, rows: int) -> Figures:
    """Read the keys."""
    return timed(lambda: len(done_keys(run_dir / "rows")), rows)


def to_lines(run_dir: Path, rows: int) -> Figures:
    """Merge into `rows.jsonl`."""
    return timed(lambda: write_sorted(run_dir / "rows", run_dir / "rows.jsonl"), rows)


def to_parquet(run_dir: Path, rows: int) -> Figures:
    """Merge into `rows.parquet`."""
    return timed(lambda: write_sorted(run_dir / "rows", run_dir / "rows.parquet"), rows)


def summary(run_dir: Path, rows: int) -> Figures:
    """Sum up."""
    return timed(lambda: summarise(read_rows(run_dir / "rows"), ["contains"]).rows, rows)


STEPS: dict[str, Callable[[Path, int], Figures]] = {
    "append": append,
    "limit": limit,
    "resume": resume,
    "write_sorted, jsonl": to_lines,
    "write_sorted, parquet": to_parquet,
    "summarise": summary,
}


def timed(work: Callable[[], int], rows: int) -> Figures:
    """Seconds that the work takes; it returns how many rows it saw."""
    began, cpu = time.perf_counter(), time.process_time()
    assert work() == rows
    seconds = time.perf_counter() - began
    return {"s": seconds, "s for 1M rows": seconds / rows * 1e6, "CPU s": time.process_time() - cpu}


_MESSAGES = [{"role": "system", "content": "Be brief. " * 6}, {"role": "user", "content": "What is it? " * 9}]
_REQUEST = {"model": "smollm2", "messages": _MESSAGES, "temperature": 0.0, "max_tokens": 32, "n": 1, "seed": 0}
_USAGE = {"prompt_tokens": 31, "total_tokens": 39, "completion_tokens": 8, "prompt_tokens_details": None}
_RESPONSE = Response(["It is. " * 45], ["stop"], _USAGE, None, None, None, 0.25, "http://127.0.0.1:8000/v1", 1)


def make_row(index: int) -> Row:
    """A row of about 1 KB with a latency of its own."""
    response = replace(_RESPONSE, latency_s=0.2 + index % 997 / 1000)
    return Row(f"question-{index}", index, 0, "ok", _REQUEST, response, scores={"contains": Score([1.0], ["paris"])})


if __name__ == "__main__":
    main()
