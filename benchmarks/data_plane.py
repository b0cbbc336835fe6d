"""The data plane against its peers: `python benchmarks/data_plane.py [--repeat 3] [--growth | --flat] [--full]`.

All clients ask the same mock server (`mock_server.py`, 300-byte answers) on the same two cores, one after another, each
in a fresh process, the whole round repeated:

- matrix: `python run.py` as a user runs it, with journal, retries, progress and summary, and no scorers. Requests per
  second are its rows over its workload time; its CPU is that of the whole process, less that of a run of one row;
- aiohttp, aiohttp-tuned, wire, openai: see `clients.py`. CPU and time are those of the requests alone, after a warm-up;
- fair-matrix: its own `query_llm.batch_requests`, in an environment of its own under `.cache/`. It gets fewer requests,
  since it does some 20 a second: two rounds of what is in flight, which favours it, as its memory grows with them.

Latency is what a request took beyond the server's own latency: at the median, and at the 99th percentile. In a closed
loop (a fixed number in flight) that is mostly the queue of the slower side; `open loop` sends on a clock, at half of
the limit, and counts from when a request was due.

`--growth`: CPU and memory of matrix over 10,000 and 100,000 rows, with `--full` 1,000,000 too.
`--flat`: memory of matrix at 1 % and 100 % of 200,000 rows, with `--full` of 10,000,000 (about 15 GB of disk).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import tables
from processes import HERE, Server, fair_matrix_python, run_client, run_matrix, say

CORES = 2
COUNTS = {
    "matrix": 40_000,
    "aiohttp": 20_000,
    "aiohttp-tuned": 20_000,
    "wire": 50_000,
    "openai": 2_500,
    "fair-matrix": 1_024,
}
# Matrix opens its connections within what is measured: enough requests that they do not decide.
LIMITS = {"matrix": 60_000, "aiohttp": 20_000, "aiohttp-tuned": 20_000, "wire": 50_000}


@dataclass(frozen=True)
class Setting:
    """One table.

    Attributes:
        title: Its headline.
        latency_ms: The server's.
        in_flight: Requests in flight; in an open loop those of the warm-up.
        counts: Requests of each client that takes part.
        broken: Share of requests that the server refuses with 503.
    """

    title: str
    latency_ms: int
    in_flight: int
    counts: Mapping[str, int] = field(default_factory=lambda: COUNTS)
    broken: float = 0.0


SETTINGS = (
    Setting("0 ms, 512 in flight", 0, 512),
    Setting("200 ms, 512 in flight", 200, 512),
    Setting("200 ms, 2,000 in flight", 200, 2000, LIMITS),
    Setting("200 ms, 512 in flight, 1 % of the requests refused with 503", 200, 512, {"matrix": 20_000}, 0.01),
)
WIDEST = SETTINGS[2]
OPEN_LOOP = ("aiohttp", "client", "aiohttp-tuned")


@dataclass(frozen=True)
class Figures:
    """One client, once."""

    rate: float
    cpu_ms: float
    p50_ms: float
    p99_ms: float
    rss_mb: float
    server_ms: float
    others: float


COLUMNS: dict[str, tuple[str, str]] = {
    "rate": ("requests/s", ",.0f"),
    "cpu_ms": ("CPU ms each", ".3f"),
    "p50_ms": ("added p50 ms", ",.1f"),
    "p99_ms": ("added p99 ms", ",.1f"),
    "rss_mb": ("peak RSS MB", ",.0f"),
    "server_ms": ("server CPU ms each", ".3f"),
    "others": ("cores others took", ".2f"),
}
Runs = dict[str, list[Figures]]


def measure(client: str, server: Server, setting: Setting, count: int, rate: float = 0.0) -> Figures:
    """Run one client once against a server that runs already."""
    before = server.stats()
    if client == "matrix":
        summary, used = run_matrix(server, count, setting.in_flight)
        _, idle = run_matrix(server, 1, 1)
        latency = summary["latency_s"]
        per_s, cpu_s = count / summary["time_s"]["workload"], used.cpu_s - idle.cpu_s
        p50_s, p99_s = latency["p50"], latency["p99"]
    else:
        python, script = (
            (fair_matrix_python(), ["fair_matrix.py"])
            if client == "fair-matrix"
            else (sys.executable, ["clients.py", client])
        )
        command = [python, str(HERE / script[0]), *script[1:], server.url, str(count)]
        command += ["--in-flight", str(setting.in_flight)]
        found, used = run_client([*command, *(["--rate", str(rate)] if rate else [])], server)
        per_s, cpu_s = found["requests"] / found["seconds"], found["cpu_s"]
        p50_s, p99_s = found["p50_s"], found["p99_s"]
    after = server.stats()
    served = after["requests"] - before["requests"]
    figures = Figures(
        rate=per_s,
        cpu_ms=cpu_s / count * 1e3,
        p50_ms=p50_s * 1e3 - setting.latency_ms,
        p99_ms=p99_s * 1e3 - setting.latency_ms,
        rss_mb=used.rss_mb,
        server_ms=(after["cpu_s"] - before["cpu_s"]) / served * 1e3,
        others=used.others,
    )
    say(f"    {figures}")
    return figures


def compare(repeat: int, scale: float, only: Sequence[str]) -> dict[str, Runs]:
    """Every client in every setting, in turns; then the open loop at half of the limit of the widest setting."""
    results: dict[str, Runs] = {setting.title: {} for setting in SETTINGS}
    for number in range(repeat):
        for setting in SETTINGS:
            with Server(setting.latency_ms / 1e3, setting.broken) as server:
                clients = [client for client in setting.counts if client in only]
                # Each round begins with another client, so that none always has the warm or the quiet machine.
                for client in (clients * 2)[number % len(clients) :][: len(clients)] if clients else []:
                    count = max(int(setting.counts[client] * scale), setting.in_flight)
                    say(f"{number + 1}/{repeat} {setting.title}: {client}, {count} requests")
                    figures = measure(client, server, setting, count)
                    results[setting.title].setdefault(client, []).append(figures)
    practical = results[WIDEST.title].get("aiohttp")
    if practical:
        limit = statistics.median(figures.rate for figures in practical)
        results.update(open_loop(limit, repeat, scale))
    return results


def open_loop(limit: float, repeat: int, scale: float) -> dict[str, Runs]:
    """Matrix's client and plain aiohttp, sending on a clock.

    Args:
        limit: What aiohttp reaches on this machine; the ideal is that, or in flight over latency if that is less.
        repeat: Rounds.
        scale: Of the number of requests.
    """
    rate = min(limit, WIDEST.in_flight / WIDEST.latency_ms * 1e3) / 2
    title = f"200 ms, open loop at {rate:,.0f} requests/s, half of what 2,000 in flight can reach"
    runs: Runs = {}
    with Server(WIDEST.latency_ms / 1e3) as server:
        for number in range(repeat):
            for client in OPEN_LOOP[:: -1 if number % 2 else 1]:
                count = max(int(10_000 * scale), WIDEST.in_flight)
                say(f"{number + 1}/{repeat} {title}: {client}, {count} requests")
                runs.setdefault(client, []).append(measure(client, server, WIDEST, count, rate))
    return {title: runs}


def show(title: str, runs: Runs) -> None:
    """Print a table, then matrix against the others."""
    figures = {client: [asdict(one) for one in several] for client, several in runs.items()}
    tables.show(title, COLUMNS, figures)
    ours = figures.get("matrix", [])
    for client, theirs in figures.items():
        if ours and client != "matrix":
            rate, cpu = tables.ratio(ours, theirs, "rate"), tables.ratio(ours, theirs, "cpu_ms")
            print(f"matrix against {client}: {rate} the requests/s, {cpu} the CPU for each")


def growth(full: bool) -> list[dict[str, float]]:
    """CPU and memory over the number of rows."""
    found = []
    print(f"{'rows':>12}{'CPU s':>10}{'CPU s per 100,000':>20}{'peak RSS MB':>14}{'rows/s':>10}{'wall s':>10}")
    with Server(0.0) as server:
        for rows in (10_000, 100_000, *((1_000_000,) if full else ())):
            say(f"{rows} rows")
            summary, used = run_matrix(server, rows, 512)
            rate = rows / summary["time_s"]["workload"]
            found.append({"rows": rows, "rate": rate, **asdict(used)})
            print(
                f"{rows:12,}{used.cpu_s:10.1f}{used.cpu_s / rows * 1e5:20.1f}{used.rss_mb:14.0f}{rate:10,.0f}"
                f"{used.wall_s:10.1f}",
                flush=True,
            )
    return found


def flat(full: bool) -> dict[str, float]:
    """Memory early and late in a run over many short rows."""
    rows = 10_000_000 if full else 200_000
    seen: list[tuple[int, float]] = []

    def sample(run_dir: Path, pid: int) -> None:
        done = rows_done(run_dir)
        if done is not None:
            if not seen or done * 20 // rows > seen[-1][0] * 20 // rows:
                say(f"  {done:,} rows done: RSS {rss_mb(pid):.0f} MB")
            seen.append((done, rss_mb(pid)))

    with Server(0.0) as server:
        say(f"{rows} rows")
        _, used = run_matrix(server, rows, 512, sample)
    working = [(done, mb) for done, mb in seen if rows // 100 <= done < rows]
    found = {
        "rows": rows,
        "RSS at 1 %, MB": working[0][1],
        "RSS at 100 %, MB": working[-1][1],
        "highest in between, MB": max(mb for _, mb in working),
        "peak, rows.jsonl and summary included, MB": used.rss_mb,
        "wall, s": used.wall_s,
    }
    for name, value in found.items():
        print(f"{name:45}{value:14,.0f}")
    return found


def rows_done(run_dir: Path) -> int | None:
    """Rows that the last whole record of `metrics.jsonl` tells of; None before there is one."""
    metrics = run_dir / "metrics.jsonl"
    if not metrics.is_file():
        return None
    with metrics.open("rb") as file:
        file.seek(max(metrics.stat().st_size - 4096, 0))
        lines = file.read().splitlines(keepends=True)
    whole = [line for line in lines if line.startswith(b"{") and line.endswith(b"\n")]
    return int(json.loads(whole[-1])["rows_done"]) if whole else None


def rss_mb(pid: int) -> float:
    """Resident set size now; 0 when the process is just ending."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields.get("VmRSS", "0 kB").split()[0]) / 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="times the number of requests")
    parser.add_argument("--clients", default=",".join(COUNTS), help="only these, separated by commas")
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--flat", action="store_true")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--json", type=Path, help="file for the raw figures")
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    measured: dict[str, object] = {}
    parts: dict[str, Callable[[bool], object]] = {"growth": growth, "flat": flat}
    for name, part in parts.items():
        if getattr(options, name):
            measured[name] = part(options.full)
    if not measured:
        results = compare(options.repeat, options.scale, options.clients.split(","))
        for title, runs in results.items():
            if runs:
                show(title, runs)
        measured = {
            title: {client: [asdict(one) for one in several] for client, several in runs.items()}
            for title, runs in results.items()
        }
    if options.json:
        options.json.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
