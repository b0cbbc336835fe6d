"""The head's job: Ray's control plane, the commands inside the cluster, and whoever looks after its workers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from matrix.cluster import jobs
from matrix.cluster.folder import ClusterFolder
from matrix.cluster.inside import Commands
from matrix.cluster.monitoring import Monitoring
from matrix.cluster.node import Heartbeat, RayNode, Sight, Signals, own_ip, say, start_child, unknown
from matrix.cluster.states import CommandPhase, Node
from matrix.cluster.waiting import nodes_up
from matrix.cluster.workers import Workers
from matrix.errors import ClusterError
from matrix.spec import SlurmCluster

_LOOK_S = 0.3
_WORKERS_S = 5.0
_LEAVE_S = 40.0
"""Seconds that commands get to stop, once the head has to go."""
_CUT_OFF_S = 2.0
"""The same where Ray has gone already, or Slurm ends every process in a moment (`KillWait`)."""
_OBSERVER_DEATHS = 5
_TELL_S = 3.0


@dataclass(frozen=True)
class Head:
    """What submitit runs.

    Attributes:
        folder: Of the cluster.
        spec: Its spec, as JSON.
    """

    folder: str
    spec: str

    def __call__(self) -> None:
        """Run the head until it is to end.

        Raises:
            ClusterError: Ray doesn't start, or ends by itself.
        """
        folder, spec = ClusterFolder(Path(self.folder)), SlurmCluster.model_validate_json(self.spec)
        if folder.is_current:
            _Head(folder, spec).run()
        else:
            say("The cluster of this job is no more")


class _Head:
    def __init__(self, folder: ClusterFolder, spec: SlurmCluster) -> None:
        self._folder, self._spec = folder, spec
        self._signals, self._sight = Signals(), Sight(folder)
        self._is_ready = False
        self._job = jobs.job_id(spec.executor)
        ip, host = own_ip(None), socket.gethostname()
        say(f"Head of cluster {spec.id}: job {self._job} on {host} ({ip}), start {_starts()}")
        node = Node(self._job, host, ip, os.getpid(), "starting", started=time.time())
        self._beat = Heartbeat(folder.head_file, node)

    def run(self) -> None:
        """Start Ray, look after everything, and end it."""
        try:
            ray = RayNode(self._folder.token, self._spec.start_timeout_s)
            ray.start(self._options(), self._leaves)
        except ClusterError as error:
            if self._signals.number is not None and self._may_come_back():
                self._go_back()
                return
            self._beat.close(phase="failed", detail=str(error))
            self._give_up()
            raise
        self._commands = Commands(self._folder, ray.environment, self._job, say)
        self._observer = _Observer(self._folder, ray)
        self._monitoring = _Watched(self._folder, ray) if self._spec.monitoring else None
        self._beat.set(
            phase="up",
            node_id=ray.where["node_id"],
            address=ray.where["address"],
            metrics=ray.where["metrics"],
            dashboard_port=int(ray.where["dashboard"] or 0),
            monitoring=self._monitoring.ports if self._monitoring else {},
        )
        say(f"Ray is up at {ray.where['address']}")
        stop_workers = self._look_after_workers()
        why = "its process failed"
        try:
            why = self._watch(ray)
        finally:
            say(f"The head ends: {why}")
            stop_workers.set()
            self._end(ray, why)
        if why == _RAY_ENDED:
            raise ClusterError("Ray's own process on the head ended; its last lines are above")

    def _options(self) -> dict[str, object]:
        spec, alone = self._spec, self._spec.executor == "debug"
        return {
            "node_ip_address": self._beat.node.ip,
            "node_name": f"{self._beat.node.host}-head",
            # Replicas belong on workers; without any the head has what there is.
            "num_cpus": spec.cpus_per_node if alone else 0,
            "num_gpus": spec.gpus_per_node if alone else 0,
            "object_store_memory": int(spec.object_store_gb * 1e9),
            "include_dashboard": spec.dashboard,
        }

    def _leaves(self) -> str:
        """Why the head should end; empty if it shouldn't."""
        if self._beat.is_superseded:
            return _SUPERSEDED
        if self._signals.number is not None:
            return f"it got {signal.Signals(self._signals.number).name}"
        with unknown(say, "The cluster's folder can't be read"):
            if not self._sight.is_current():
                return "the cluster is no more"
            if self._folder.cluster().stopping:
                return _STOPPED
        return ""

    def _watch(self, ray: RayNode) -> str:
        """Look after the cluster; returns why it is over."""
        while True:
            self._signals.wait(_LOOK_S)
            if not ray.is_alive:
                return _RAY_ENDED
            if why := self._leaves():
                return why
            with unknown(say, "The commands can't be looked after"):
                self._commands.look(starts=self._has_workers())
                if self._folder.cluster().for_runs and self._commands.all_ended() and self._last_one_out():
                    return _LAST_RUN
            self._observer.look()
            if self._monitoring:
                self._monitoring.look(self._beat.node)

    def _has_workers(self) -> bool:
        """Whether as many workers have joined as a start waits for; from then on commands start whatever comes.

        What waits in a command has limits (an app's start) that aren't meant for the queue.
        """
        if not self._is_ready:
            there = sum(worker.nodes for worker in self._folder.cluster().workers if worker.wanted)
            wanted = min(self._spec.min_workers or self._spec.workers, there)
            self._is_ready = self._spec.executor == "debug" or len(nodes_up(self._folder)) >= wanted
        return self._is_ready

    def _last_one_out(self) -> bool:
        """End the cluster, unless another command has come in meanwhile."""
        # Who holds the lock may be about to hand a command over, or wait for this process to end.
        with self._folder.try_lock() as held:
            if not held or not self._commands.all_ended():
                return False
            self._folder.change(stopping=True)
            return True

    def _look_after_workers(self) -> threading.Event:
        """In a thread: Slurm may take its time to answer."""
        stop = threading.Event()
        workers = Workers(self._folder, say)

        def look() -> None:
            while not stop.wait(_WORKERS_S):
                with unknown(say, "The workers can't be looked after"):
                    workers.look()

        threading.Thread(target=look, name="workers", daemon=True).start()
        return stop

    def _end(self, ray: RayNode, why: str) -> None:
        """End everything; what is cut off goes on if Slurm starts this job again."""
        self._beat.set(phase="draining", detail=why)
        is_superseded = why == _SUPERSEDED
        is_cut_off = why == _RAY_ENDED or self._signals.number == signal.SIGTERM
        goes_on = is_superseded or (self._signals.number is not None and self._may_come_back())
        then: CommandPhase = "requeued" if goes_on else "stopped" if why == _STOPPED else "lost"
        self._commands.end(_CUT_OFF_S if is_cut_off else _LEAVE_S, then)
        if self._monitoring:
            self._monitoring.end()
        ray.end()
        if is_superseded:
            return
        if goes_on:
            self._go_back()
            return
        self._beat.close(phase="failed" if why == _RAY_ENDED else "ended", detail=why, address="")
        self._give_up()

    def _go_back(self) -> None:
        """Into the queue."""
        self._beat.close(phase="requeued", address="")
        with unknown(say, "The job can't be put back into the queue"):
            jobs.put_back()

    def _may_come_back(self) -> bool:
        """Whether there is something to go on with, and Slurm would start the head again."""
        with unknown(say, "The job's state can't be found out"):
            cluster = self._folder.cluster()
            if cluster.stopping or all(command.has_ended for command in self._folder.commands()):
                return False
            return jobs.may_come_back(self._spec.executor, self._job)
        return False

    def _give_up(self) -> None:
        """The cluster ends with its head: its workers go, and so does what is secret."""
        with unknown(say, "The workers can't be ended"):
            workers = [worker.job_id for worker in self._folder.cluster().workers]
            jobs.cancel(self._spec.executor, workers)
        # Who stops a cluster holds the lock until this process is gone, and clears it away.
        with unknown(say, "The cluster's folder can't be cleared away"), self._folder.try_lock() as held:
            if held:
                self._folder.retire()


class _Observer:
    """The process that tells what Ray knows: nodes, apps, front door."""

    def __init__(self, folder: ClusterFolder, ray: RayNode) -> None:
        self._command = [sys.executable, "-P", "-m", "matrix.run.observer", str(folder.path), ray.where["address"]]
        self._environment, self._deaths, self._log = ray.environment, 0, folder.logs / "observer.log"
        self._start()

    def look(self) -> None:
        """Start it again if it has died."""
        if self._process.poll() is not None and self._deaths < _OBSERVER_DEATHS:
            self._deaths += 1
            self._start()

    def _start(self) -> None:
        with self._log.open("ab") as output:
            self._process = start_child(
                self._command, self._environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )


class _Watched:
    """Monitoring, told of nodes that come and go."""

    def __init__(self, folder: ClusterFolder, ray: RayNode) -> None:
        self._folder, self._told_at = folder, 0.0
        self._monitoring = Monitoring(folder.path, ray.temp_dir, self._key, say)
        self.ports = self._monitoring.start()

    def look(self, head: Node) -> None:
        """Tell it who is there, now and then."""
        if time.monotonic() - self._told_at < _TELL_S:
            return
        self._told_at = time.monotonic()
        with unknown(say, "Monitoring can't be told of the nodes"):
            workers = self._folder.cluster().workers
            nodes = [head, *self._folder.nodes().values()]
            partitions = {worker.job_id: worker.partition for worker in workers}
            self._monitoring.update(nodes, self._folder.front_door(), partitions)

    def end(self) -> None:
        """End it; returns when it is gone."""
        self._monitoring.end()

    def _key(self) -> str | None:
        return self._folder.key.read_text() if self._folder.key.is_file() else None


_RAY_ENDED = "Ray's own process ended"
_STOPPED = "matrix stop_cluster"
_LAST_RUN = "the run that it was started for has ended"
_SUPERSEDED = "Slurm has started this job again elsewhere"


def _starts() -> int:
    return int(os.environ.get("SLURM_RESTART_COUNT", "0")) + 1
