"""Slurm's jobs, as far as the rest of the cluster sees them, with no Slurm."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator

import pytest

from matrix.cluster import jobs, launch, waiting
from matrix.cluster.folder import ClusterFolder
from matrix.cluster.slurm import JobStatus
from matrix.cluster.states import WorkerJob
from matrix.errors import ClusterError
from matrix.spec import SlurmCluster
from tests.cluster.clusters import status


class FakeJobs:
    """What was submitted and cancelled, and what Slurm says.

    Attributes:
        known: States that Slurm gives, by id; what is submitted becomes `PENDING`.
        cancelled: Ids, in the order in which they were.
        down: Times that Slurm doesn't answer.
        refused: Roles that it takes no job of.
        dies_of: Signal that ends a job; `SIGKILL`: only that.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.known: dict[str, JobStatus] = {}
        self.submitted: list[tuple[str, SlurmCluster, int]] = []
        self.cancelled: list[str] = []
        self.down = 0
        self.refused: set[str] = set()
        self.dies_of: int = signal.SIGTERM
        self.on_sleep: Iterator[Callable[[], object]] = iter(())
        for name in ("submit_head", "submit_workers", "states", "cancel"):
            monkeypatch.setattr(jobs, name, getattr(self, name))
        for module, name, seconds in (
            (waiting, "_ASK_S", -1.0), (waiting, "_LOG_S", 0.0), (launch, "_KILL_AFTER_S", 0.05),
            (launch, "_HEAD_LEAVES_S", 0.5),
        ):  # fmt: skip
            monkeypatch.setattr(module, name, seconds)
        monkeypatch.setattr("time.sleep", self._sleep)

    def then(self, *steps: Callable[[], object]) -> None:
        """What happens while somebody waits, look for look; a wait without an end fails."""
        self.on_sleep = iter(steps)

    def _sleep(self, _: float) -> None:
        step = next(self.on_sleep, None)
        assert step is not None, "it waits for nothing"
        step()

    def submit_head(self, folder: ClusterFolder, spec: SlurmCluster, main: Callable[[], None]) -> str:
        return self._submit("head", spec, 1)[0]

    def submit_workers(
        self, folder: ClusterFolder, spec: SlurmCluster, main: Callable[[], None], count: int, *, replaces: str = ""
    ) -> list[WorkerJob]:
        plain = spec.model_dump(mode="json")
        return [WorkerJob(job, spec=plain) for job in self._submit("workers", spec, count)]

    def _submit(self, role: str, spec: SlurmCluster, count: int) -> list[str]:
        if role in self.refused:
            raise ClusterError("Slurm refuses the job: no")
        number = 100 + len(self.submitted)
        self.submitted.append((role, spec, count))
        ids = [str(number)] if role == "head" else [f"{number}_{task}" for task in range(count)]
        self.known |= {job: status(job, "PENDING", "Resources") for job in ids}
        return ids

    def states(self, _executor: str, ids: Iterable[str]) -> dict[str, JobStatus]:
        if self.down:
            self.down -= 1
            raise ClusterError("squeue: Unable to contact slurm controller\nmore")
        return {job: self.known[job] for job in ids if job in self.known}

    def cancel(self, _executor: str, ids: Iterable[str], number: int = signal.SIGTERM) -> None:
        for job in ids:
            self.cancelled.append(job)
            if job in self.known and self.dies_of in (number, signal.SIGTERM):
                self.known[job] = status(job, "CANCELLED")

    def are(self, state: str, *ids: str, reason: str = "") -> None:
        """What Slurm says from now on."""
        self.known |= {job: status(job, state, reason) for job in ids}
