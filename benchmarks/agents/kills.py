"""Goodput while peers die: `python benchmarks/agents/kills.py [--repeat 3] [--quick]`.

A team over the simulated engine with four peers (`workload.drivers=4`), undisturbed, and with one of the four ended by
`kill -9` every 10 s, another one each time. Rows of five turns of 0.5 s, 400 in flight, so 160 rows/s at most. What is
looked at:

- rows/s from the first row's begin to the last row's end, and the ratio of both;
- rows that are missing or there twice, in `rows.jsonl` and in the part files;
- requests that reached the engine, against those that the rows need: what the kills made be asked again. What is under
  way with a peer when it dies is lost with it, and nothing else should be.

Peers are those processes of the run in which rows have begun.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import latency
import meter
import tables
from engines import Engines
from overhead import CORES, ROOT, environment_of_teams, model_at
from processes import say

HERE = Path(__file__).parent
PEERS = 4
EVERY_S = 10.0
IN_FLIGHT = 400
ROWS = 12_000
ENGINE = {"first_token_s": 0.5, "token_s": 0, "output_tokens": 16}
_KEY = re.compile(rb'"index":(\d+),"trial":(\d+)')
COLUMNS = {
    "rows_per_s": ("rows/s", ",.1f"),
    "kills": ("kills", ",.0f"),
    "missing": ("rows missing", ",.0f"),
    "twice": ("rows twice", ",.0f"),
    "written_twice": ("in parts", ",.0f"),
    "errors": ("error rows", ",.0f"),
    "again": ("requests asked again", ",.0f"),
    "again_share": ("of all", ".2%"),
    "others": ("cores engines and others took", ".2f"),
}


class Killer:
    """Ends a peer every 10 s; each is told of to stderr.

    Args:
        marks: Folder in which processes that have begun a row leave a file with their number as its name.
    """

    def __init__(self, marks: Path) -> None:
        self._marks = marks
        self.kills = 0

    def work(self, run: int) -> None:
        """Until the run is over."""
        me, due = os.getpid(), None
        while Path(f"/proc/{run}").exists():
            peers = self._peers(me)
            if due is None:
                # The clock starts when all work.
                due = time.monotonic() + EVERY_S if len(peers) == PEERS else None
            elif time.monotonic() >= due and peers:
                # By age: the one that has lived longest.
                with suppress(ProcessLookupError):
                    os.kill(peers[0], signal.SIGKILL)
                    self.kills += 1
                    say(f"    peer {peers[0]} killed, {len(peers) - 1} left")
                due += EVERY_S
            time.sleep(0.1)

    def _peers(self, me: int) -> list[int]:
        """Processes of ours that work on rows, oldest first."""
        begun = {int(mark.name) for mark in self._marks.iterdir()}
        return sorted(begun.intersection(meter.tree(me)), key=_started)


def _started(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    return 0


def measure(kill: bool, rows: int) -> dict[str, float]:
    """One run."""
    with Engines(ENGINE) as engines, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        marks, run_dir, data = folder / "marks", folder / "run", folder / "data.jsonl"
        marks.mkdir()
        data.write_text('{"question": "What is the discount?"}\n' * rows)
        overrides = [
            *("agents=custom", f"agents.file={HERE / 'latency_team.py'}", "agents.repeat=false"),
            f"agents.order=[{','.join(['asker'] * latency.HOPS)}]",
            *model_at(engines.urls[0]),
            *(f"dataset.path={data}", "dataset.id_key=null", "tracker=none", f"workload.drivers={PEERS}"),
            *(f"workload.concurrency={IN_FLIGHT}", f"workload.max_in_flight={IN_FLIGHT}", f"run.dir={run_dir}"),
        ]
        command, killer = [sys.executable, str(ROOT / "run.py"), *overrides], Killer(marks)
        meanwhile = killer.work if kill else None
        used = meter.run(
            command, folder, environment_of_teams(marks), beside=engines.pids, timeout_s=900, meanwhile=meanwhile
        )
        began = min(float(mark.read_text()) for mark in marks.iterdir())
        lines = [json.loads(line) for line in (run_dir / "rows.jsonl").open("rb")]
        ended = max(entry["data"]["ended"] for line in lines for entry in line["history"])
        seen = Counter(line["index"] for line in lines)
        parts = Counter(
            match.groups()
            for part in (run_dir / "rows").glob("part-*.jsonl")
            for line in part.open("rb")
            if (match := _KEY.search(line))
        )
        again = engines.count() - rows * latency.HOPS
        return {
            "rows_per_s": rows / (ended - began),
            "kills": killer.kills,
            "missing": rows - len(seen),
            "twice": sum(seen.values()) - len(seen),
            "written_twice": sum(parts.values()) - len(parts),
            "errors": sum(line["status"] != "ok" for line in lines),
            "again": again,
            "again_share": again / rows / latency.HOPS,
            "others": used.others(began, ended),
        }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round of a third of the rows")
    parser.add_argument("--json", type=Path, help="file for the raw figures")
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    runs: dict[str, list[dict[str, float]]] = {"undisturbed": [], "one of four killed every 10 s": []}
    for number in range(1 if options.quick else options.repeat):
        for kill, (title, several) in list(enumerate(runs.items()))[:: -1 if number % 2 else 1]:
            say(f"round {number + 1}: {title}")
            several.append(measure(bool(kill), ROWS // 3 if options.quick else ROWS))
            say(f"    {', '.join(f'{key} {value:,.3f}' for key, value in several[-1].items())}")
    tables.show(f"{PEERS} peers, {IN_FLIGHT} rows in flight", COLUMNS, runs)
    undisturbed, killed = runs.values()
    print(f"with kills against undisturbed: {tables.ratio(killed, undisturbed, 'rows_per_s')} the rows/s")
    if options.json:
        options.json.write_text(json.dumps(runs, indent=1) + "\n")


if __name__ == "__main__":
    main()
