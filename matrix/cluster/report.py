"""What there is to tell of a cluster, from its folder and one question to Slurm."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from matrix.cluster import jobs
from matrix.cluster.folder import ClusterFolder
from matrix.cluster.slurm import JobStatus, is_over
from matrix.cluster.states import STALE_S, Node
from matrix.errors import ClusterError

_SHOWN = 20
"""Ended commands that are told of."""


def describe(folder: ClusterFolder) -> dict[str, Any]:
    """The cluster as it is now.

    Returns:
        `id`, `phase`, `folder`, `head`, `workers` (each with its job's state in Slurm), `commands`, and what Ray knows
        as far as the head has told it: `nodes`, `apps`, `front_door`; `trouble`: what couldn't be found out.
    """
    cluster, head, nodes = folder.cluster(), folder.head(), folder.nodes()
    trouble = []
    known: Mapping[str, JobStatus] = {}
    try:
        wanted = [worker.job_id for worker in cluster.workers if worker.wanted]
        known = jobs.states(cluster.executor, [job for job in [cluster.head_job, *wanted] if job])
    except ClusterError as error:
        trouble.append(str(error).splitlines()[0])
    by_job: dict[str, list[Node]] = {}
    for node in nodes.values():
        by_job.setdefault(node.job_id, []).append(node)
    workers = [
        {
            "job": worker.job_id,
            "nodes": worker.nodes,
            "partition": worker.partition,
            "wanted": worker.wanted,
            "replaces": worker.replaces,
            **_slurm(known.get(worker.job_id)),
            "on": [_node(node) for node in by_job.get(worker.job_id, [])],
        }
        for worker in cluster.workers
        if worker.wanted or any(node.phase in ("up", "draining") for node in by_job.get(worker.job_id, []))
    ]
    commands = folder.commands()
    shown = [one for one in commands if not one.has_ended] + [one for one in commands if one.has_ended][-_SHOWN:]
    return {
        "id": cluster.id,
        "executor": cluster.executor,
        "phase": _phase(cluster.stopping, head, known.get(cluster.head_job)),
        "folder": str(folder.path),
        "head": {"job": cluster.head_job, **_slurm(known.get(cluster.head_job)), **(_head(head) if head else {})},
        "workers": workers,
        "commands": [asdict(one) for one in sorted(shown, key=lambda one: one.submitted)],
        **_ray(folder),
        "trouble": trouble,
    }


def _phase(stopping: bool, head: Node | None, job: JobStatus | None) -> str:
    if stopping:
        return "stopping"
    if head is None:
        return "waiting" if job else "starting"
    if head.phase in ("failed", "ended", "requeued"):
        return head.phase
    if job is not None and is_over(job.state):
        return "lost"
    return "not heard of" if head.is_silent else head.phase


def _slurm(status: JobStatus | None) -> dict[str, Any]:
    if status is None:
        return {"state": "unknown", "reason": "", "ends": None}
    return {"state": status.state, "reason": status.reason, "ends": status.ends or None}


def _node(node: Node) -> dict[str, Any]:
    fresh = not node.is_silent or node.phase in ("ended", "failed", "requeued")
    found = asdict(node)
    return {
        **{key: found[key] for key in ("host", "ip", "node_id", "detail")},
        "phase": node.phase if fresh else "not heard of",
    }


def _head(head: Node) -> dict[str, Any]:
    found = asdict(head)
    return {**_node(head), **{key: found[key] for key in ("address", "dashboard_port", "monitoring")}}


def _ray(folder: ClusterFolder) -> dict[str, Any]:
    try:
        found = json.loads(folder.ray.read_text())
    except (FileNotFoundError, ValueError):
        found = {"time": 0, "nodes": [], "apps": [], "front_door": None}
    is_fresh = time.time() - found.pop("time") < STALE_S
    return found if is_fresh else {"nodes": [], "apps": [], "front_door": None}
