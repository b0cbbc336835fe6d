"""What the head does for its workers: those that are lost are asked for again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from matrix.cluster import jobs, slurm
from matrix.cluster.folder import ClusterFolder
from matrix.cluster.states import Cluster, WorkerJob
from matrix.cluster.worker import Worker
from matrix.errors import ClusterError
from matrix.spec import SlurmCluster

_RETRY_LOOKS = 12
"""After a refused submission so many looks are left out."""


@dataclass
class Workers:
    """The workers of a cluster.

    Args:
        folder: Of the cluster.
        say: Told what happens.
    """

    folder: ClusterFolder
    say: Callable[[str], None]
    _pause: int = 0

    def look(self) -> None:
        """Submit a worker for each that is lost, as long as `max_resubmits` allows.

        A worker that Slurm puts back into the queue (a preempted one, one whose node failed) isn't lost.

        Raises:
            ClusterError: Slurm doesn't answer.
        """
        self._pause -= 1
        cluster = self.folder.cluster()
        wanted = [worker for worker in cluster.workers if worker.wanted]
        if self._pause > 0 or not wanted or cluster.stopping or not self.folder.is_current:
            return
        known = jobs.states(cluster.executor, [worker.job_id for worker in wanted])
        lost = [worker for worker in wanted if worker.job_id not in known or slurm.is_over(known[worker.job_id].state)]
        if lost:
            with self.folder.lock():
                for worker in lost:
                    state = known[worker.job_id].state if worker.job_id in known else "gone"
                    self._replace(worker, state)

    def _replace(self, worker: WorkerJob, state: str) -> None:
        # As it is now, under the lock: a command may have dismissed the worker meanwhile.
        cluster = self.folder.cluster()
        is_wanted = any(one.job_id == worker.job_id and one.wanted for one in cluster.workers)
        if cluster.stopping or not is_wanted or not self.folder.is_current:
            return
        used, limit = resubmits(cluster), int(cluster.spec["max_resubmits"])
        if used + worker.nodes > limit:
            self.say(f"Worker {worker.job_id} is lost ({state}); {used} of max_resubmits={limit} are used up")
            self.folder.dismiss([worker.job_id])
            return
        spec = SlurmCluster.model_validate(worker.spec)
        main = Worker(str(self.folder.path), spec.model_dump_json())
        try:
            new = jobs.submit_workers(self.folder, spec, main, worker.nodes, replaces=worker.job_id)
        except ClusterError as error:
            self._pause = _RETRY_LOOKS
            self.say(f"Worker {worker.job_id} is lost ({state}); it will be asked for again: {error}")
            return
        self.say(f"Worker {worker.job_id} is lost ({state}): {', '.join(one.job_id for one in new)} takes its place")
        self.folder.dismiss([worker.job_id])
        self.folder.add_workers([replace(one, replaces=worker.job_id) for one in new])


def resubmits(cluster: Cluster) -> int:
    """Nodes that were asked for again so far."""
    return sum(worker.nodes for worker in cluster.workers if worker.replaces)
