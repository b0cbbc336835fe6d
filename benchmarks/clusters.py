"""Clusters of jobs on a real Slurm: `python benchmarks/clusters.py [--repeat N] [--json FILE]`, as root.

- start: seconds from `matrix start_cluster cluster.workers=3` to its exit, when all workers have joined, against
  Slurm's own start of the same jobs: the same sbatch scripts, whose jobs only write a file each, from the first sbatch
  to the last file;
- loss: seconds from the death of a worker's raylet, of its job (scancel), and of its whole node (every process there,
  Slurm's own too), until the cluster is seen to lack it and until as many workers are there again;
- status: `matrix status` with three workers and an app on each, ten times;
- plan: what would go where on 1,000 nodes, from the start of the command to its exit.

Each round has a Slurm of its own on this machine: a controller and three nodes, up in five seconds, gone at the end.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from processes import say
from slurm import MATRIX, RUN, Slurm, until
from tables import Runs, show

from matrix.cluster import report
from matrix.cluster.folder import ClusterFolder, find, root_of

# A node of 8 CPUs and 7 GB holds the head beside one worker, and no two workers.
SIZE = (
    *("cluster=slurm", "cluster.cpus_per_node=5", "cluster.mem_gb_per_node=4", "cluster.gpus_per_node=0"),
    *("cluster.head.cpus=2", "cluster.head.mem_gb=2", "cluster.max_hours=1", "cluster.drain_s=5"),
)
WORKERS = 3
APP = ("engine=simulated", "model=api", "model.name=pretend", f"engine.replicas={WORKERS}", "engine.cpus=3")
LARGE = ("cluster=slurm", "cluster.workers=1000", "cluster.cpus_per_node=8", "cluster.gpus_per_node=0")
PLANS = {
    "start_cluster": (*MATRIX, "start_cluster", "plan=true"),
    "run with 8,000 replicas": (*RUN, "plan=true", *APP[:3], "engine.replicas=8000", "tracker=none"),
}
OURS, THEIRS = "matrix start_cluster", "Slurm alone"
_LIMIT_S = 180.0


def main() -> None:
    """Measure everything and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="rounds")
    parser.add_argument("--json", type=Path, help="file for the raw figures")
    options = parser.parse_args()
    # As Ctrl-C: whatever ends it, Slurm is stopped.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    starts: Runs = {}
    losses: Runs = {}
    commands: Runs = {}
    for number in range(options.repeat):
        with Slurm() as slurm:
            _first_job(slurm)
            _note(commands, number, _plans(slurm))
            for contender in (_theirs, _ours)[:: -1 if number % 2 else 1]:
                _note(starts, number, contender(slurm))
            slurm.command(*MATRIX, "start_cluster", *SIZE, f"cluster.workers={WORKERS}")
            _note(commands, number, _status(slurm))
            _note(losses, number, _losses(slurm))
    show(f"Seconds until a head and {WORKERS} workers are there", {"seconds": ("seconds", ".1f")}, starts)
    more = [ours["seconds"] - theirs["seconds"] for ours, theirs in zip(starts[OURS], starts[THEIRS], strict=True)]
    print(f"matrix: {statistics.median(more):.1f} s more ({min(more):.1f} to {max(more):.1f})")
    columns = {
        "status_s": ("not in status, s", ".1f"),
        "ray_s": ("not among Ray's nodes, s", ".1f"),
        "again_s": ("as many workers again, s", ".1f"),
    }
    show("A worker is lost", columns, losses)
    show("Commands", {"seconds": ("seconds", ".2f"), "longest": ("longest of ten, s", ".2f")}, commands)
    if options.json:
        found = {"starts": starts, "losses": losses, "commands": commands}
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def _note(runs: Runs, number: int, found: dict[str, dict[str, float]]) -> None:
    for name, figures in found.items():
        say(f"{number + 1} {name}: {figures}")
        runs.setdefault(name, []).append(figures)


def _first_job(slurm: Slurm) -> None:
    """Have every node run something once: a node's first job is slower than all others."""
    slurm.command("sbatch", "--wait", f"--nodes={WORKERS}", "--output=first", "--wrap=srun true")
    slurm.wait_until_empty()


def _ours(slurm: Slurm) -> dict[str, dict[str, float]]:
    seconds, _ = slurm.command(*MATRIX, "start_cluster", *SIZE, f"cluster.workers={WORKERS}")
    slurm.command(*MATRIX, "stop_cluster")
    slurm.wait_until_empty()
    return {OURS: {"seconds": seconds}}


def _theirs(slurm: Slurm) -> dict[str, dict[str, float]]:
    """Submit the scripts of the plan, with another payload."""
    slurm.command(*MATRIX, "start_cluster", "plan=true", *SIZE, f"cluster.workers={WORKERS}")
    folder = slurm.home / "clusters" / "slurm" / "plan"
    for name in ("head", "workers"):
        before, _, _ = (folder / f"{name}.sh").read_text().partition("python -u -m")
        (folder / f"alone-{name}.sh").write_text(f"{before}touch {folder}/started-$SLURM_JOB_ID\n")
    began = time.monotonic()
    for name in ("head", "workers"):
        slurm.command("sbatch", str(folder / f"alone-{name}.sh"))
    until(lambda: len(list(folder.glob("started-*"))) == WORKERS + 1, _LIMIT_S, "all jobs have started")
    seconds = time.monotonic() - began
    slurm.wait_until_empty()
    for path in folder.glob("started-*"):
        path.unlink()
    return {THEIRS: {"seconds": seconds}}


def _plans(slurm: Slurm) -> dict[str, dict[str, float]]:
    head = [argument for argument in SIZE if ".head." in argument]
    return {f"plan=true, {name}": {"seconds": slurm.command(*line, *LARGE, *head)[0]} for name, line in PLANS.items()}


def _status(slurm: Slurm) -> dict[str, dict[str, float]]:
    slurm.command(*MATRIX, "deploy_applications", *SIZE, *APP)
    seconds = [slurm.command(*MATRIX, "status")[0] for _ in range(10)]
    slurm.command(*MATRIX, "deploy_applications", "--action", "remove", *SIZE, *APP)
    return {"status": {"seconds": statistics.median(seconds), "longest": max(seconds)}}


def _losses(slurm: Slurm) -> dict[str, dict[str, float]]:
    folder = find(root_of(None) / "slurm")
    assert folder is not None
    found = {
        "kill -9 of its raylet": _lose(folder, lambda worker: _kill_raylet(slurm, worker)),
        "scancel": _lose(folder, lambda worker: subprocess.run(["scancel", worker["job"]], check=True)),
    }
    # Its replacement needs a node, and the head keeps its own: one of the other two workers goes.
    spare = _victim(folder)
    slurm.command(*MATRIX, "remove_workers", f"jobs={spare['job']}")
    found["its node"] = _lose(folder, lambda worker: slurm.kill_node(worker["on"][0]["host"]), WORKERS - 1)
    return found


def _lose(folder: ClusterFolder, kill: Callable[[dict[str, Any]], object], workers: int = WORKERS) -> dict[str, float]:
    """Kill one worker, and watch what the cluster says of it."""
    until(lambda: _up(folder) == workers, _LIMIT_S, f"{workers} workers are up")
    worker = _victim(folder)
    node_id = worker["on"][0]["node_id"]
    began = time.monotonic()
    kill(worker)
    seen: dict[str, float] = {}
    while len(seen) < 3:
        told = report.describe(folder)
        in_status, in_ray = node_id in _ids(told), node_id in {node["id"] for node in told["nodes"]}
        is_gone = not in_status and not in_ray
        waited = time.monotonic() - began
        for key, holds in (("status_s", not in_status), ("ray_s", not in_ray), ("again_s", is_gone)):
            if holds and (key != "again_s" or _up(folder) == workers):
                seen.setdefault(key, waited)
        if waited > _LIMIT_S:
            raise SystemExit(f"not within {_LIMIT_S:g} s: {workers} workers again; by then: {seen}, {told}")
        time.sleep(0.1)
    return seen


def _victim(folder: ClusterFolder) -> dict[str, Any]:
    """A worker that isn't on the head's node."""
    told = report.describe(folder)
    found: dict[str, Any] = next(
        worker for worker in told["workers"] if worker["on"] and worker["on"][0]["host"] != told["head"]["host"]
    )
    return found


def _ids(told: dict[str, Any]) -> set[str]:
    """Ray's ids of the workers that the cluster takes for up."""
    return {
        node["node_id"]
        for worker in told["workers"]
        for node in worker["on"]
        if node["phase"] == "up" and worker["state"] == "RUNNING"
    }


def _up(folder: ClusterFolder) -> int:
    """Workers that are up, by their own word, Slurm's and Ray's."""
    told = report.describe(folder)
    return len(_ids(told) & {node["id"] for node in told["nodes"]})


def _kill_raylet(slurm: Slurm, worker: dict[str, Any]) -> None:
    (raylet,) = slurm.processes(worker["on"][0]["host"], "raylet/raylet")
    subprocess.run(["kill", "-9", str(raylet)], check=True)


if __name__ == "__main__":
    main()
