"""Waiting for a cluster's jobs: what for, how long, and what went wrong."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from matrix.cluster import jobs, slurm
from matrix.cluster.folder import ClusterFolder
from matrix.cluster.slurm import JobStatus
from matrix.cluster.states import Node, WorkerJob
from matrix.errors import ClusterError

_LOOK_S = 0.2
_MANY, _LOOK_MANY_S = 50, 2.0
_ASK_S = 2.0
_LAST_LINES = 15
_REMIND_S = 10.0
_LOG_S = 3.0
"""Seconds for a log to come through a shared file system."""


class LiveLine:
    """What is being waited for: one line that is rewritten on a terminal, else a line now and then."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._said, self._said_at, self._is_open = "", 0.0, False

    def show(self, text: str) -> None:
        """What is waited for now."""
        now = time.monotonic()
        if sys.stderr.isatty():
            print(f"\r\x1b[2K{now - self._began:4.0f} s  {text[:160]}", end="", file=sys.stderr, flush=True)
            self._is_open = True
        elif text != self._said or now - self._said_at > _REMIND_S:
            print(f"{now - self._began:4.0f} s  {text}", file=sys.stderr, flush=True)
            self._said_at = now
        self._said = text

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._is_open:
            print("\r\x1b[2K", end="", file=sys.stderr)
            self._is_open = False
        print(text, file=sys.stderr, flush=True)


@dataclass
class Asking:
    """Asks Slurm about some jobs, not more often than every few seconds.

    Attributes:
        executor: submitit's.
        known: What the last answer was.
        trouble: Why there was none; empty if there was.
    """

    executor: str
    known: dict[str, JobStatus] = field(default_factory=dict)
    trouble: str = ""
    _asked_at: float = 0.0

    def about(self, ids: Sequence[str]) -> dict[str, JobStatus]:
        """How the jobs are, as far as is known."""
        if time.monotonic() - self._asked_at > _ASK_S:
            self._asked_at = time.monotonic()
            try:
                self.known, self.trouble = jobs.states(self.executor, ids), ""
            except ClusterError as error:
                self.trouble = str(error).splitlines()[0]
        return self.known


def wait_for_head(folder: ClusterFolder, show: Callable[[str], None]) -> Node:
    """Wait until the head is up.

    Raises:
        ClusterError: Its job failed, with the last lines of its log; or it takes too long.
    """
    cluster, spec = folder.cluster(), folder.spec()
    job, asking, began = cluster.head_job, Asking(cluster.executor), time.monotonic()
    while True:
        head = folder.head()
        if head is not None and head.phase == "up" and head.is_fresh:
            return head
        if head is not None and head.phase == "failed":
            raise ClusterError(f"the head failed: {head.detail}{last_lines(folder, job)}")
        status = asking.about([job]).get(job)
        if (status is not None and slurm.is_over(status.state)) or (status is None and cluster.executor != "slurm"):
            state = status.state if status else "gone"
            raise ClusterError(f"the head's job {job} has ended ({state}) before Ray was up{last_lines(folder, job)}")
        waited = time.monotonic() - began
        runs = status is not None and status.state == "RUNNING"
        limit, key = (spec.start_timeout_s, "start_timeout_s") if runs else (spec.queue_timeout_s, "queue_timeout_s")
        since = min(waited, time.time() - status.started) if status is not None and runs else waited
        if since > limit:
            raise ClusterError(f"the head (job {job}) is not up after {since:.0f} s (cluster.{key}={limit:g})")
        show(f"head: job {job} {_word(status, asking)}")
        time.sleep(_LOOK_S)


def waits_for(folder: ClusterFolder, asking: Asking) -> str:
    """What a command that hasn't started waits for."""
    head, job = folder.head(), folder.cluster().head_job
    if head is not None and head.phase == "up":
        return f"the head starts the command once enough workers have joined ({len(nodes_up(folder))} so far)"
    return f"head: job {job} {_word(asking.about([job]).get(job), asking)}"


def wait_for_workers(folder: ClusterFolder, wanted: int, show: Callable[[str], None]) -> None:
    """Wait until so many worker nodes have joined.

    Raises:
        ClusterError: Too many of their jobs have failed, with the last lines of a log; the head is gone; or it takes
            too long.
    """
    cluster = folder.cluster()
    asking, began = Asking(cluster.executor), time.monotonic()
    while True:
        workers = [worker for worker in folder.cluster().workers if worker.wanted]
        up = nodes_up(folder)
        if len(up) >= wanted:
            return
        head = folder.head()
        if head is None or head.phase in ("failed", "ended") or not folder.is_current:
            detail = head.detail if head else "it has gone"
            raise ClusterError(f"the head ended while workers joined: {detail}{last_lines(folder, cluster.head_job)}")
        known = asking.about([cluster.head_job, *(worker.job_id for worker in workers)])
        job = cluster.head_job
        if not asking.trouble and (slurm.is_over(known[job].state) if job in known else not head.is_fresh):
            # Killed at once, it could write nothing.
            raise ClusterError(f"the head's job {job} ended while workers joined{last_lines(folder, job)}")
        over = [w for w in workers if w.job_id in known and slurm.is_over(known[w.job_id].state)]
        expected = sum(worker.nodes for worker in workers if worker not in over)
        if expected < wanted and not _may_be_replaced(folder, over):
            bad = over[0].job_id if over else _last_lost(folder)
            state = known[bad].state if bad in known else "gone"
            raise ClusterError(
                f"{len(up)} of {wanted} workers have joined, and no more will come: job {bad} {state}"
                f"{last_lines(folder, bad)}"
            )
        _refuse_late(folder, workers, known, began, wanted, len(up))
        waiting = [w.job_id for w in workers if w.job_id not in {node.job_id for node in up.values()}]
        words = {_word(known.get(job), asking) for job in waiting}
        show(f"workers: {len(up)} of {wanted} have joined; {len(waiting)} jobs {', '.join(sorted(words))}")
        # The files of many nodes take a while to read.
        time.sleep(_LOOK_S if wanted < _MANY else _LOOK_MANY_S)


def nodes_up(folder: ClusterFolder) -> dict[str, Node]:
    """The worker nodes that have joined, by name."""
    wanted = {worker.job_id for worker in folder.cluster().workers if worker.wanted}
    nodes = folder.nodes().items()
    return {name: node for name, node in nodes if node.phase == "up" and node.is_fresh and node.job_id in wanted}


def last_lines(folder: ClusterFolder, job: str) -> str:
    """The end of a job's log, for an error; empty if there is none."""
    path = folder.jobs / f"{job}_0_log.out"
    deadline = time.monotonic() + _LOG_S
    while not path.is_file() and time.monotonic() < deadline:
        time.sleep(0.2)
    if not path.is_file():
        return ""
    lines = path.read_text(errors="replace").splitlines()[-_LAST_LINES:]
    return "\n".join([f"; its last lines ({path}):", *(f"    {line}" for line in lines)])


def _word(status: JobStatus | None, asking: Asking) -> str:
    if status is None:
        return asking.trouble or "submitted"
    return status.state + (f" ({status.reason})" if status.reason and status.state in slurm.WAITING else "")


def _may_be_replaced(folder: ClusterFolder, over: Sequence[WorkerJob]) -> bool:
    """Whether the head will ask for the lost ones again."""
    from matrix.cluster.workers import resubmits

    cluster = folder.cluster()
    left = int(cluster.spec["max_resubmits"]) - resubmits(cluster)
    return bool(over) and sum(worker.nodes for worker in over) <= left


def _last_lost(folder: ClusterFolder) -> str:
    lost = [worker.job_id for worker in folder.cluster().workers if not worker.wanted]
    return lost[-1] if lost else ""


def _refuse_late(
    folder: ClusterFolder,
    workers: Sequence[WorkerJob],
    known: dict[str, JobStatus],
    began: float,
    wanted: int,
    up: int,
) -> None:
    spec = folder.spec()
    running = [known[w.job_id] for w in workers if w.job_id in known and known[w.job_id].state == "RUNNING"]
    waits = len(running) < len(workers)
    limit, key = (spec.queue_timeout_s, "queue_timeout_s") if waits else (spec.start_timeout_s, "start_timeout_s")
    newest = max((status.started or 0 for status in running), default=0)
    waited = time.monotonic() - began
    since = waited if waits else min(waited, time.time() - newest)
    if since > limit:
        raise ClusterError(
            f"{up} of {wanted} workers have joined after {since:.0f} s (cluster.{key}={limit:g}); "
            "give it more time, or cluster.min_workers"
        )
