"""A run inside a cluster while its terminal is in the background, for tests to which something happens meanwhile."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from matrix.cluster.folder import ClusterFolder
from matrix.cluster.states import Command, Node
from matrix.cluster.waiting import nodes_up
from matrix.data.parts import done_keys
from matrix.run.state import RunState
from tests.command import rows
from tests.slurm.clusters import ROWS, SIMULATED, SMALL, assert_whole
from tests.slurm.login import Login


class Run:
    """A run of the default data set on the cluster of the default id.

    Args:
        login: Whose it is.
        overrides: What `run.py` is called with.
        trials: Of each row.
        name: Of its folder, below the user's; one that is there is resumed.
        per_s: About so many rows are answered in a second.
    """

    def __init__(self, login: Login, *overrides: str, trials: int, name: str = "run", per_s: int = 8) -> None:
        self._login, self._trials = login, trials
        self.dir = login.cwd / name
        pace = ("engine.first_token_s=0.5", "engine.token_s=0", f"workload.concurrency={per_s // 2}")
        ours = (*SMALL, *SIMULATED, *pace, f"trials={trials}", f"run.dir={self.dir}")
        self.terminal: subprocess.Popen[str] = login.start_run(*ours, *overrides)

    @property
    def said(self) -> str:
        """What the terminal shows."""
        return self._login.said(self.terminal)

    @property
    def folder(self) -> ClusterFolder:
        """Of the cluster that was started last, living or dead."""
        return newest_cluster(self._login)

    @property
    def head(self) -> Node:
        """The cluster's head."""
        found = self.folder.head()
        assert found is not None
        return found

    @property
    def command(self) -> Command:
        """How far it is, as the head has it."""
        return [one for one in self.folder.commands() if one.run_dir == str(self.dir)][-1]

    @property
    def state(self) -> RunState:
        """How far it is, as its run dir has it."""
        found = RunState.of_run(self.dir)
        assert found is not None
        return found

    def done(self) -> int:
        """Rows that are in the journal."""
        return len(done_keys(self.dir / "rows")) if (self.dir / "rows").is_dir() else 0

    def works(self, more: int = 4) -> None:
        """Wait until so many more rows are there."""
        wanted = self.done() + more
        self._login.wait_for(lambda: self.done() >= wanted or self._has_ended, 120, f"more rows\n{self.said}")
        assert not self._has_ended, f"it has ended too soon\n{self.said}\n{self._login.told()}"

    def ends(self, code: int = 0, timeout_s: float = 180) -> str:
        """Wait for its end, which has this exit code; returns what the terminal has shown."""
        self._login.wait_for(lambda: self._has_ended, timeout_s, f"the end\n{self.said}")
        assert self.terminal.returncode == code, f"{self.terminal.returncode}\n{self.said}\n{self._login.told()}"
        return self.said

    def completes(self, timeout_s: float = 180) -> list[dict[str, Any]]:
        """Wait for its end: each row is there once, with an answer, in the result and in the journal; returns the rows."""
        self.ends(timeout_s=timeout_s)
        assert_whole(self.dir, self._trials)
        wanted = [(index, trial) for index in range(ROWS) for trial in range(self._trials)]
        assert _journal(self.dir) == wanted
        return rows(self.dir)

    @property
    def _has_ended(self) -> bool:
        return self.terminal.poll() is not None


def newest_cluster(login: Login) -> ClusterFolder:
    """The folder of the cluster that was started last, living or dead."""
    return ClusterFolder(max((login.matrix_dir / "clusters" / "slurm").glob("*/cluster.json")).parent)


def joined(login: Login) -> dict[str, Node]:
    """The workers that have joined, by name."""
    return nodes_up(newest_cluster(login))


def _journal(run_dir: Path) -> list[tuple[int, int]]:
    lines = [line for part in (run_dir / "rows").glob("*.jsonl") for line in part.read_bytes().splitlines()]
    return sorted((row["index"], row["trial"]) for row in map(json.loads, lines))
