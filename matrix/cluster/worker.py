"""A worker's job: Ray on one node, for as long as the cluster wants it."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from matrix.cluster import jobs
from matrix.cluster.folder import ClusterFolder
from matrix.cluster.node import Heartbeat, RayNode, Sight, Signals, own_ip, say, unknown
from matrix.cluster.states import Cluster, Node
from matrix.errors import ClusterError
from matrix.spec import SlurmCluster
from matrix.spec.cluster import resources_of

_LOOK_S = 0.5
_HEAD_GONE_S = 20.0
"""Seconds between two questions to Slurm about a head that says nothing."""
_SOON_S = 60.0
_DEATHS = 3
"""Times that Ray may end so soon after its start."""
_TERMINATED_S = 3.0
"""Of a job that gets SIGTERM Slurm ends every process, Ray's as well: there is nothing to drain."""
_UNREADABLE = "The cluster's folder can't be read"


@dataclass(frozen=True)
class Worker:
    """What submitit runs, once on each node of a job.

    Attributes:
        folder: Of the cluster.
        spec: The spec that the worker was asked for with, as JSON.
    """

    folder: str
    spec: str

    def __call__(self) -> None:
        """Run the worker until it is to leave.

        Raises:
            ClusterError: Ray doesn't start here, or dies again and again.
        """
        _Worker(ClusterFolder(Path(self.folder)), SlurmCluster.model_validate_json(self.spec)).run()


class _Worker:
    def __init__(self, folder: ClusterFolder, spec: SlurmCluster) -> None:
        self._folder, self._spec = folder, spec
        self._signals, self._sight = Signals(), Sight(folder)
        self._job, rank = jobs.job_id(spec.executor), jobs.rank(spec.executor)
        self._name = f"{self._job}.{rank}" if rank else self._job
        self._asked_at = self._waits_since = time.monotonic()
        host = socket.gethostname()
        say(f"Worker {self._name} of cluster {spec.id} on {host}")
        node = Node(self._job, host, "", os.getpid(), "starting", started=time.time())
        self._beat = Heartbeat(folder.node_file(self._name), node)

    def run(self) -> None:
        """Join, stay, leave; whenever the head comes anew, join again."""
        deaths, why = 0, ""
        while not why:
            ray = RayNode(self._folder.token, self._spec.start_timeout_s)
            head, why = self._wait_for_head()
            if head is None:
                ray.end()
                break
            began = time.monotonic()
            try:
                self._join(ray, head)
            except ClusterError as error:
                say(str(error))
                deaths += 1
            else:
                left = self._stay(ray, head)
                deaths = deaths + 1 if left is None and time.monotonic() - began < _SOON_S else 0
                why = left or ""
            if deaths == _DEATHS:
                self._beat.close(phase="failed", detail="Ray ended three times in a row soon after its start")
                raise ClusterError(f"Ray ends again and again on {self._beat.node.host}; its last lines are above")
        say(f"The worker ends: {why}")
        comes_back = self._signals.number is not None and self._may_come_back()
        self._beat.close(phase="requeued" if comes_back else "ended", detail=why)
        if comes_back:
            with unknown(say, "The job can't be put back into the queue"):
                jobs.put_back()

    def _join(self, ray: RayNode, head: Node) -> None:
        spec, options, ip = self._spec, self._spec.slurm, own_ip(head.ip)
        self._beat.set(ip=ip, phase="starting", detail="")
        ray.start(
            {
                "gcs_address": head.address,
                "redis_address": head.address,
                "node_ip_address": ip,
                "node_name": f"{self._beat.node.host}-{self._name}",
                "num_cpus": spec.cpus_per_node,
                "num_gpus": spec.gpus_per_node,
                "resources": resources_of(spec, options.partition or "", options.account or "", options.qos or ""),
                "object_store_memory": int(spec.object_store_gb * 1e9),
            },
            self._leaves,
        )
        self._beat.set(phase="up", node_id=ray.where["node_id"], metrics=ray.where["metrics"])
        say(f"Joined {head.address} as {ray.where['node_id']}")

    def _stay(self, ray: RayNode, head: Node) -> str | None:
        """Be a node of the cluster.

        Returns:
            Why the worker leaves; empty if the head has gone, or come anew; None if Ray has ended by itself.
        """
        try:
            while ray.is_alive:
                self._signals.wait(_LOOK_S)
                if why := self._leaves():
                    self._beat.set(phase="draining", detail=why)
                    self._drain(ray)
                    return why
                with unknown(say, "The head can't be seen"):
                    now = self._folder.head()
                    if now is not None and now.address != head.address:
                        say("The head has gone, or come anew")
                        return ""
            return None
        finally:
            ray.end()

    def _drain(self, ray: RayNode) -> None:
        with unknown(say, _UNREADABLE):
            if self._beat.is_superseded or not self._sight.is_current() or self._folder.cluster().stopping:
                return
        seconds = _TERMINATED_S if self._signals.number == signal.SIGTERM else self._spec.drain_s
        say(f"Draining for {seconds:g} s")
        ray.drain(seconds, lambda: self._signals.number == signal.SIGTERM or self._is_empty())

    def _is_empty(self) -> bool:
        """Whether no replica is left here, as far as the observer knows."""
        with unknown(say, "The cluster's state can't be read"):
            return not busy_nodes(self._folder).get(self._beat.node.node_id, True)
        return False

    def _may_come_back(self) -> bool:
        """Whether the cluster wants the worker, and Slurm would start it again."""
        if self._beat.is_superseded or jobs.rank(self._spec.executor):
            return False
        with unknown(say, "The job's state can't be found out"):
            if self._folder.is_current and self._is_wanted(self._folder.cluster()):
                return jobs.may_come_back(self._spec.executor, self._job)
        return False

    def _leaves(self) -> str:
        """Why the worker should leave; empty if it shouldn't."""
        if self._signals.number is not None:
            return f"it got {signal.Signals(self._signals.number).name}"
        if self._beat.is_superseded:
            return "Slurm has started this job again elsewhere"
        with unknown(say, _UNREADABLE):
            if not self._sight.is_current():
                return "the cluster is no more"
            if not self._is_wanted(self._folder.cluster()):
                return "the cluster doesn't want it any more"
        return ""

    def _is_wanted(self, cluster: Cluster) -> bool:
        mine = [worker for worker in cluster.workers if worker.job_id == self._job]
        # Not noted yet: the command that submitted it is about to.
        return not cluster.stopping and all(worker.wanted for worker in mine)

    def _wait_for_head(self) -> tuple[Node | None, str]:
        """The head, once it is up; or why there is nothing to wait for."""
        self._waits_since = self._asked_at = time.monotonic()
        self._beat.set(phase="starting", detail="waits for the head")
        while True:
            why = self._leaves() or self._head_is_gone()
            if why:
                return None, why
            with unknown(say, "The head can't be seen"):
                head = self._folder.head()
                if head is not None and head.is_fresh and head.phase == "up":
                    return head, ""
            self._signals.wait(_LOOK_S)

    def _head_is_gone(self) -> str:
        """Ask Slurm about a head that says nothing, now and then."""
        if time.monotonic() - self._asked_at < _HEAD_GONE_S:
            return ""
        self._asked_at = time.monotonic()
        if time.monotonic() - self._waits_since > self._spec.queue_timeout_s:
            return f"the head didn't come within {self._spec.queue_timeout_s:g} s (queue_timeout_s)"
        with unknown(say, "Slurm can't be asked about the head"):
            job = self._folder.cluster().head_job
            if job and not jobs.living(self._spec.executor, [job]):
                return f"the head's job {job} is gone"
        return ""


def busy_nodes(folder: ClusterFolder) -> dict[str, bool]:
    """Whether replicas are on a node, by Ray's id of it, as the observer sees it."""
    try:
        found = json.loads(folder.ray.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return {node["id"]: bool(node["busy"]) for node in found["nodes"]}
