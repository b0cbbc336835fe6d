"""What a framework costs where no model is asked: `python benchmarks/agents/overhead.py [--repeat 3] [--quick]`.

Coral's loop of six steps (`coral.py`), 8.4 turns a row, by roles that answer at once. All contestants take the same
turns over the same file of rows, one after another on the same two cores, and each round begins with another one:

- asyncio: one process or two without a framework (`contestants.py`): the limit. Its results are thrown away, or written
  as lines of JSON;
- langgraph: the same functions in a compiled StateGraph, two processes; `langgraph, sqlite` with its checkpointer;
- fair-matrix: 0.2.6's own dummy Coral config, by its own entry point, in an environment of its own, on its own Ray;
- matrix: `python run.py` with `dummy_coral.py`, journal on, one driver, and two (which need Ray).

All that twice: with turns that are over at once, where a row of plain asyncio or of matrix never waits and so goes to
its end before the next one begins, and with turns that let other rows run (`asyncio.sleep(0)`), so that as many as are
said are really in flight. fair-matrix queues each turn anyway and is measured once.

Rates count from the first row's begin to the last row's end, without what comes before and after (imports, Ray, the
sorted file). CPU is that of all processes, within that time; memory is the highest sum at any time. A slow contestant
gets fewer rows, a quick one more: a rate is a rate. Each is refused if its turns aren't those that the rows demand.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import coral
import meter
import peers
import tables
from processes import say

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CORES = 2

IN_FLIGHT = (100, 1_000, 10_000)
COLUMNS = {
    "rows_per_s": ("rows/s", ",.0f"),
    "hops_per_s": ("hops/s", ",.0f"),
    "cpu_ms": ("CPU ms a row", ",.3f"),
    "rss_mb": ("peak RSS MB", ",.0f"),
    "pss_mb": ("peak PSS MB", ",.0f"),
    "rows": ("rows", ",.0f"),
    "others": ("cores others took", ",.2f"),
}
AGENTS = (
    *("agents=custom", f"agents.file={HERE / 'dummy_coral.py'}", f"agents.order=[{','.join(coral.ORDER)}]"),
    *("agents.ends=[answer_matcher]", f"agents.limits.turns={coral.MOST_TURNS}"),
)


@dataclass(frozen=True)
class Task:
    """One contestant's part in a round.

    Attributes:
        rows: File of the rows.
        count: How many they are.
        in_flight: At a time.
        folder: Its own.
        pause: Whether other rows run in each turn.
    """

    rows: Path
    count: int
    in_flight: int
    folder: Path
    pause: bool


def plain(name: str, *flags: str, python: Callable[[], str] = lambda: sys.executable) -> Callable[[Task], Any]:
    """A contestant of `contestants.py`; with `--write` what comes of it goes to its folder."""

    def measure(task: Task) -> dict[str, float]:
        options = [*flags, *(["--pause"] if task.pause else [])]
        options = [str(task.folder) if option == "FOLDER" else option for option in options]
        script = [str(HERE / "contestants.py"), name, str(task.rows), "--in-flight", str(task.in_flight)]
        used = meter.run([python(), *script, *options], task.folder)
        said = json.loads(used.stdout.splitlines()[-1])
        return figures(task, used, said["hops"], said["began"], said["ended"], said["cpu_s"], said["rss_mb"])

    return measure


def fair_matrix(task: Task) -> dict[str, float]:
    """Its own simulation."""
    out = task.folder / "out.jsonl"
    python = Path(peers.fair_matrix_python())
    # Ray's sockets need short paths.
    with tempfile.TemporaryDirectory(prefix="fm", dir="/tmp") as short:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MATRIX_"))},
            "PATH": f"{python.parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(HERE),
            "BENCHMARK_RAY": short,
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        }
        overrides = [
            *("--config-name=coral_mmlu_pro_dummy", f"max_concurrent_tasks={task.in_flight}", "dataset.name=json"),
            *("dataset.split=train", f"dataset.data_files={task.rows}", f"dataset.cut_off={task.count}"),
            *(f"output.path={out}", "agents.answer_matcher._target_=fair_roles.Matcher"),
            f"hydra.run.dir={task.folder / 'hydra'}",
        ]
        used = meter.run([str(python), str(HERE / "fair_run.py"), *overrides], task.folder, environment)
    rows = [json.loads(line) for line in out.open("rb")]
    # The first entry of a history is the question.
    hops = sum(len(row["history"]) - 1 for row in rows)
    began = min(row["creation_timestamp"] for row in rows)
    return figures(task, used, hops, began, max(row["finish_timestamp"] for row in rows))


def matrix(drivers: int) -> Callable[[Task], dict[str, float]]:
    """Ours, as a user runs it."""

    def measure(task: Task) -> dict[str, float]:
        marks, run_dir = task.folder / "marks", task.folder / "run"
        marks.mkdir()
        overrides = [
            *(*AGENTS, *model_at(), f"dataset.path={task.rows}", f"dataset.limit={task.count}", "tracker=none"),
            *("dataset.id_key=question_id", f"workload.drivers={drivers}", f"run.dir={run_dir}"),
            *(f"workload.concurrency={task.in_flight}", f"workload.max_in_flight={task.in_flight}"),
        ]
        environment = environment_of_teams(marks) | ({"BENCHMARK_PAUSE": "1"} if task.pause else {})
        used = meter.run([sys.executable, str(ROOT / "run.py"), *overrides], task.folder, environment)
        hops = sum(len(json.loads(line)["history"]) for line in (run_dir / "rows.jsonl").open("rb"))
        began = min(float(mark.read_text()) for mark in marks.iterdir())
        ended = max(part.stat().st_mtime for part in (run_dir / "rows").glob("part-*.jsonl"))
        return figures(task, used, hops, began, ended)

    return measure


def model_at(url: str = "http://127.0.0.1:9/v1") -> list[str]:
    """Overrides for a model; by default one where nobody listens, since nobody is asked."""
    return ["engine=openai", f"engine.base_url={url}", "engine.api_key_env=null", "model=api", "model.name=sim"]


def environment_of_teams(marks: Path) -> dict[str, str]:
    """For a run with a team of this folder: drivers get a copy of its file, so what it imports is found by the path."""
    return {**os.environ, "BENCHMARK_MARKS": str(marks), "PYTHONPATH": f"{ROOT}:{HERE}"}


def figures(
    task: Task, used: meter.Used, hops: int, began: float, ended: float, cpu_s: float | None = None, rss_mb: float = 0
) -> dict[str, float]:
    """What a contestant did; its own word for CPU and memory where it is too quick to be looked at.

    Raises:
        SystemExit: It took other turns than the rows demand.
    """
    due = sum(3 * coral.rounds(number) for number in range(task.count))
    if hops != due:
        raise SystemExit(f"{hops} turns were taken where {task.count} rows demand {due}")
    cpu_s = used.cpu_s(began, ended) if cpu_s is None else cpu_s
    found = {
        "rows": task.count,
        "rows_per_s": task.count / (ended - began),
        "hops_per_s": hops / (ended - began),
        "cpu_ms": cpu_s / task.count * 1e3,
        "rss_mb": max(used.rss_mb, rss_mb),
        # Of a short run there is hardly a look.
        **({"pss_mb": used.pss_mb} if used.wall_s > 5 else {}),
        "others": used.others(began, ended),
        "wall_s": used.wall_s,
    }
    say(f"    {', '.join(f'{key} {value:,.3f}' for key, value in found.items())}")
    return found


def contestants() -> dict[str, tuple[Callable[[Task], dict[str, float]], Callable[[int], int]]]:
    """By name: who measures it, and how many rows it gets for a number in flight."""
    graph, written = peers.langgraph_python, ("--write", "FOLDER")
    return {
        "asyncio, 2 processes, thrown away": (plain("asyncio"), lambda _: 100_000),
        "asyncio, 1 process, written": (plain("asyncio", "--processes", "1", *written), lambda _: 100_000),
        "asyncio, 2 processes, written": (plain("asyncio", *written), lambda _: 100_000),
        "langgraph": (plain("langgraph", python=graph), lambda _: 10_000),
        "langgraph, sqlite": (
            plain("langgraph-sqlite", *written, python=graph),
            lambda n: max(2_000, min(n, 10_000)),
        ),
        "fair-matrix": (fair_matrix, lambda n: max(1_000, 2 * n if n < 10_000 else n)),
        "matrix, 1 driver": (matrix(1), lambda _: 50_000),
        "matrix, 2 drivers": (matrix(2), lambda _: 50_000),
    }


def compare(options: argparse.Namespace) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Everybody at every number in flight, in turns."""
    everybody = contestants()
    chosen = [name for name in everybody if any(name.startswith(one) for one in options.contestants)]
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    for number, pause, in_flight in itertools.product(range(options.repeat), options.turns, options.in_flight):
        title = f"{in_flight:,} in flight, turns {'let others run' if pause else 'are over at once'}"
        here = [name for name in chosen if not (pause and name == "fair-matrix")]
        runs = results.setdefault(title, {name: [] for name in here})
        # Each round begins with another one, so that none always has the warm or the quiet machine.
        first = number % len(here)
        for name in here[first:] + here[:first]:
            measure, rows_for = everybody[name]
            count = max(100, int(rows_for(in_flight) * options.scale))
            say(f"{number + 1}/{options.repeat} {title}: {name}, {count} rows")
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "rows.jsonl")
                with path.open("w") as file:
                    file.writelines(json.dumps(coral.row(index)) + "\n" for index in range(count))
                runs[name].append(measure(Task(path, count, in_flight, Path(folder), pause)))
    return results


def show(results: Mapping[str, Mapping[str, list[dict[str, float]]]]) -> None:
    """Print the tables, and ours against each of the others."""
    for title, runs in results.items():
        tables.show(title, COLUMNS, runs)
        for ours in (name for name in runs if name.startswith("matrix")):
            for name, theirs in runs.items():
                if not name.startswith("matrix") and len(runs[ours]) == len(theirs):
                    rate, cpu = (tables.ratio(runs[ours], theirs, key) for key in ("rows_per_s", "cpu_ms"))
                    print(f"{ours} against {name}: {rate} the rows/s, {cpu} the CPU a row")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="times the number of rows")
    parser.add_argument("--quick", action="store_true", help="one round at 100 in flight with a tenth of the rows")
    parser.add_argument("--in-flight", type=lambda text: [int(one) for one in text.split(",")], default=[*IN_FLIGHT])
    parser.add_argument("--contestants", type=lambda text: text.split("+"), default=[""], help="beginnings, by +")
    parser.add_argument(
        "--turns", choices=("at-once", "pausing", "both"), default="both", help="whether turns let other rows run"
    )
    parser.add_argument("--json", type=Path, help="file for the raw figures")
    options = parser.parse_args()
    if options.quick:
        options.repeat, options.scale, options.in_flight = 1, 0.1, [100]
    options.turns = {"at-once": [False], "pausing": [True], "both": [False, True]}[options.turns]
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    results = compare(options)
    show(results)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
