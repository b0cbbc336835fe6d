"""Many workflows in flight over a slow model: `python benchmarks/agents/in_flight.py [--in-flight 2000,10000,20000]`.

Rows of five turns, four rows for each place; a turn takes a lognormal time (median 1 s, 99th percentile 6 s).

The ideal begins a row the moment that one before it ends, and everything but the model costs nothing (`latency.ideal`).
What is compared is the number of turns that end within a window, with the number that end in the ideal's same window:

- it begins after 5 s, when the rows that all began together have come apart (ramp-up);
- it ends when the ideal begins its last row: until then all places are taken (tail). A slower contestant has its own
  places taken for longer, so the window is one of full load for it, too.

`of all` is the whole run's time, ramp-up and tail included, of the ideal's. Contestants:

- sleeping: the model's time is a sleep within the process, which leaves the runtime alone: plain asyncio (no framework,
  nothing kept), and matrix with one driver and two, each turn a journalled step;
- asking: the simulated engine, in a process of its own that shares the two cores, is asked over HTTP: `wire` (bytes
  made beforehand, `clients.py`: the server's own limit), plain aiohttp, matrix. Each request in flight is a connection,
  so that the limit of open files limits those of a server; where it is lower, that many are in flight.
"""

from __future__ import annotations

import argparse
import bisect
import json
import os
import resource
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import latency
import meter
import tables
from engines import Engines
from overhead import CORES, ROOT, environment_of_teams, model_at
from processes import say

HERE = Path(__file__).parent
ROWS_A_PLACE = 4
RAMP_S = 5.0
ENGINE = {
    "first_token_s": {"kind": "lognormal", "mean": latency.MEAN_S, "std": latency.STD_S},
    "token_s": 0,
    "output_tokens": 16,
}
COLUMNS = {
    "hops_per_s": ("hops/s", ",.0f"),
    "ideal_per_s": ("ideal hops/s", ",.0f"),
    "share": ("of the ideal", ".1%"),
    "of_all": ("of all", ".1%"),
    "cpu_ms": ("CPU ms a hop", ".3f"),
    "server_ms": ("server's", ".3f"),
    "rss_mb": ("peak RSS MB", ",.0f"),
    "others": ("cores others took", ".2f"),
}
CONTESTANTS = (
    *("sleeping: asyncio", "sleeping: matrix, 1 driver", "sleeping: matrix, 2 drivers"),
    *("asking: wire", "asking: aiohttp", "asking: matrix, 1 driver", "asking: matrix, 2 drivers"),
)


def measure(name: str, in_flight: int, rows_a_place: int) -> dict[str, float]:
    """One contestant, once."""
    how, who = name.split(": ")
    if how == "sleeping":
        return contend(who, in_flight, rows_a_place, None)
    # Files that a server has open beside its connections.
    in_flight = min(in_flight, resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 200)
    with Engines(ENGINE) as engines:
        return contend(who, in_flight, rows_a_place, engines)


def contend(who: str, in_flight: int, rows_a_place: int, engines: Engines | None) -> dict[str, float]:
    """Run it, and compare it with the ideal."""
    rows = in_flight * rows_a_place
    served = server_cpu_s(engines)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        beside = engines.pids if engines else []
        url = engines.urls[0] if engines else None
        if who == "wire":
            return wire(folder, in_flight, rows, url, beside)
        if who.startswith("matrix"):
            used, began, ended = matrix(folder, in_flight, rows, url, beside, int(who.split()[1]))
        else:
            script = [str(HERE / "latency_plain.py"), str(rows), str(in_flight), *(["--url", url] if url else [])]
            used = meter.run([sys.executable, *script], folder, beside=beside)
            said = json.loads(used.stdout.splitlines()[-1])
            began, ended = said["began"], said["ended"]
    if len(ended) != rows * latency.HOPS:
        raise SystemExit(f"{len(ended)} turns were taken where {rows} rows have {rows * latency.HOPS}")
    best, last_begin = latency.ideal(rows, in_flight)
    window = RAMP_S, last_begin
    hops, due = (ends_within(times, window) for times in (sorted(when - began for when in ended), best))
    seconds = window[1] - window[0]
    whole = max(ended)
    return {
        "hops_per_s": hops / seconds,
        "ideal_per_s": due / seconds,
        "share": hops / due,
        "of_all": best[-1] / (whole - began),
        "cpu_ms": used.cpu_s(began, whole) / len(ended) * 1e3,
        "rss_mb": used.rss_mb,
        "others": others(used, began, whole, engines, served),
        **({"server_ms": (server_cpu_s(engines) - served) / len(ended) * 1e3} if engines else {}),
    }


def wire(folder: Path, in_flight: int, rows: int, url: str | None, beside: list[int]) -> dict[str, float]:
    """The server's limit, of one turn a row; as many requests as the others send, a first round left out."""
    script = [str(HERE.parent / "clients.py"), "wire", str(url), str(rows * latency.HOPS - in_flight), "--model", "sim"]
    # Many connections need as many open files, and this client doesn't ask for them.
    command = ["bash", "-c", 'ulimit -n "$(ulimit -Hn)"; exec "$@"', "-", sys.executable, *script]
    used = meter.run([*command, "--in-flight", str(in_flight)], folder, beside=beside)
    said = json.loads(used.stdout.splitlines()[-1])
    # Its slowest requests end alone: until 99 % are over it has all places taken, more or less.
    mean = said["mean_s"]
    return {
        "hops_per_s": in_flight / mean,
        "ideal_per_s": in_flight / latency.MEAN_S,
        "share": latency.MEAN_S / mean,
        "cpu_ms": said["cpu_s"] / said["requests"] * 1e3,
        "rss_mb": used.rss_mb,
    }


def matrix(
    folder: Path, in_flight: int, rows: int, url: str | None, beside: list[int], drivers: int
) -> tuple[meter.Used, float, list[float]]:
    """Ours: what it used, when it began, and when each turn ended."""
    marks, run_dir, data = folder / "marks", folder / "run", folder / "data.jsonl"
    marks.mkdir()
    with data.open("w") as file:
        file.writelines(
            json.dumps({"question_id": row, "question": "What is the discount?"}) + "\n" for row in range(rows)
        )
    overrides = [
        *("agents=custom", f"agents.file={HERE / 'latency_team.py'}", "agents.repeat=false"),
        f"agents.order=[{','.join(['asker' if url else 'sleeper'] * latency.HOPS)}]",
        *(model_at(url) if url else model_at()),
        *(f"dataset.path={data}", "dataset.id_key=null", "tracker=none", f"workload.drivers={drivers}"),
        *(f"workload.concurrency={in_flight}", f"workload.max_in_flight={in_flight}", f"run.dir={run_dir}"),
    ]
    command = [sys.executable, str(ROOT / "run.py"), *overrides]
    used = meter.run(command, folder, environment_of_teams(marks), beside=beside)
    began = min(float(mark.read_text()) for mark in marks.iterdir())
    return used, began, list(turn_ends(run_dir / "rows.jsonl"))


def turn_ends(path: Path) -> Iterator[float]:
    """When each turn of a run ended, as its roles noted it."""
    with path.open("rb") as lines:
        for line in lines:
            for entry in json.loads(line)["history"]:
                yield entry["data"]["ended"]


def ends_within(ends: Sequence[float], window: tuple[float, float]) -> int:
    """How many of some ordered moments are in a window."""
    return bisect.bisect(ends, window[1]) - bisect.bisect(ends, window[0])


def server_cpu_s(engines: Engines | None) -> float:
    """CPU that the servers have used."""
    return meter.cpu_of(pid for root in engines.pids for pid in meter.tree(root)) if engines else 0.0


def others(used: meter.Used, began: float, ended: float, engines: Engines | None, served: float) -> float:
    """Cores that neither the contestant nor its server used."""
    return max(0.0, used.others(began, ended) - (server_cpu_s(engines) - served) / (ended - began))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--in-flight", type=lambda text: [int(one) for one in text.split(",")], default=None)
    parser.add_argument("--contestants", type=lambda text: text.split("+"), default=[""], help="beginnings, by +")
    parser.add_argument("--quick", action="store_true", help="500 in flight")
    parser.add_argument("--json", type=Path, help="file for the raw figures")
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    results: dict[str, tables.Runs] = {}
    for number in range(options.repeat):
        for in_flight in options.in_flight or ([500] if options.quick else [2_000, 10_000, 20_000]):
            title = f"{in_flight:,} in flight"
            for name in CONTESTANTS[:: -1 if number % 2 else 1]:
                if any(name.startswith(one) for one in options.contestants):
                    say(f"{number + 1}/{options.repeat} {title}: {name}")
                    found = measure(name, in_flight, ROWS_A_PLACE)
                    say(f"    {', '.join(f'{key} {value:,.3f}' for key, value in found.items())}")
                    results.setdefault(title, {}).setdefault(name, []).append(found)
    for title, runs in results.items():
        tables.show(title, COLUMNS, runs)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
