"""Clusters that are small enough for three nodes on one machine, and what tests ask of them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from tests.slurm.login import Login

SMALL = (
    "cluster=slurm", "cluster.cpus_per_node=2", "cluster.gpus_per_node=0", "cluster.mem_gb_per_node=1",
    "cluster.head.cpus=1", "cluster.head.mem_gb=1", "cluster.object_store_gb=0.1", "cluster.drain_s=5",
)  # fmt: skip
"""Workers of 2 CPUs."""
ENGINE = ("engine=simulated", "model=api", "model.name=pretend", "engine.cpus=1.5")
"""A replica takes most of a worker."""
SIMULATED = (*ENGINE, "tracker=none")
ROWS = 48
"""Rows of the default data set."""


def status(login: Login, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(login.matrix("status", "--json", *arguments).stdout)
    return found


def ups(login: Login, *arguments: str) -> list[str]:
    """Jobs of the workers that have joined."""
    workers = status(login, *arguments)["workers"]
    return [worker["job"] for worker in workers if worker["on"] and worker["on"][0]["phase"] == "up"]


def run_dir(login: Login, pattern: str = "outputs/*/*") -> Path:
    (found,) = [path.parent for path in login.cwd.glob(f"{pattern}/spec.yaml")]
    return found


def assert_whole(run_dir: Path, trials: int = 1, rows: int = ROWS) -> None:
    """Every row is there once, with an answer, in the result and in the journal's parts."""
    found = [json.loads(line) for line in (run_dir / "rows.jsonl").read_text().splitlines()]
    assert Counter((row["index"], row["trial"]) for row in found) == Counter(
        {(index, trial): 1 for index in range(rows) for trial in range(trials)}
    )
    assert {row["status"] for row in found} == {"ok"}
