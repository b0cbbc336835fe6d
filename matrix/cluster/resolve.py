"""A Slurm cluster's spec with what Slurm knows filled in, and what is wrong with it by what Slurm knows."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

from matrix.cluster.slurm import Partition, node_kinds
from matrix.errors import ClusterError, ConfigError, Problem, did_you_mean
from matrix.spec import SlurmCluster

_NOT_HERE = ("Could not establish a configuration source", "Unable to process configuration file")
"""What Slurm's own programs say on a machine that has them, but belongs to no Slurm."""
_DEFAULT_HOURS = 24.0
"""Time limit where there is none."""
_UNITS = {"gpus": "GPUs", "cpus": "CPUs", "mem_gb": "GB of memory"}
"""What makes a node larger than another one; the first that differs decides."""
_ASSUMED = Partition("", True, True, 1_000_000, 64, 1_000_000, 8, "", None)
"""For a plan on a machine without Slurm."""


def resolved(spec: SlurmCluster) -> SlurmCluster:
    """The spec with what Slurm knows instead of None: CPUs, GPUs and memory of a node, the time limit.

    They are those of the partition's largest node, of those with what the spec asks for. Where the jobs are no jobs of
    Slurm's (`executor=local` or `debug`), they are those of this machine, without GPUs. A machine without Slurm, which
    can only plan, assumes nodes of 64 CPUs and 8 GPUs.

    Raises:
        ConfigError: There is no such partition, or it has less than is asked for.
        ClusterError: Slurm doesn't answer.
    """
    if spec.executor != "slurm":
        cpus, mem_gb = os.cpu_count() or 1, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1024**3
        return _filled(spec, replace(_ASSUMED, cpus=cpus, mem_gb=max(1, mem_gb), gpus=0))
    known = _node_kinds(int(time.monotonic() // 60), os.environ.get("SLURM_CONF"))
    if known is None:
        return _filled(spec, _ASSUMED)
    wanted = {"cpus": spec.cpus_per_node, "gpus": spec.gpus_per_node, "mem_gb": spec.mem_gb_per_node}
    wanted_by_head = {"cpus": spec.head.cpus, "mem_gb": spec.head.mem_gb}
    workers, problems = _find("cluster.slurm.partition", spec.slurm.partition, wanted, known)
    head, others = _find("cluster.head.partition", spec.head.partition or spec.slurm.partition, wanted_by_head, known)
    # Where the head goes where the workers go, it was said already.
    problems += others if spec.head.partition else []
    if workers:
        problems += _too_much("cluster.{}_per_node", wanted, workers, known)
        if spec.slurm.one_job and spec.workers > workers.nodes:
            message = f"partition {workers.name} has {workers.nodes} such nodes, and one_job needs all at once"
            problems.append(Problem("cluster.workers", spec.workers, message, f"at most {workers.nodes}"))
    if head:
        problems += _too_much("cluster.head.{}", wanted_by_head, head, known)
    limits = {place.max_hours: place.name for place in (head, workers) if place and place.max_hours is not None}
    for hours, name in limits.items():
        if spec.max_hours is not None and spec.max_hours > hours:
            message = f"the time limit of partition {name} is {hours:g} h"
            problems.append(Problem("cluster.max_hours", spec.max_hours, message, f"at most {hours:g}"))
    if problems or workers is None:
        raise ConfigError(problems)
    return _filled(spec, replace(workers, max_hours=min(limits, default=None)))


def _filled(spec: SlurmCluster, node: Partition) -> SlurmCluster:
    found = {
        "cpus_per_node": node.cpus,
        "gpus_per_node": node.gpus,
        "mem_gb_per_node": node.mem_gb,
        "max_hours": _DEFAULT_HOURS if node.max_hours is None else node.max_hours,
    }
    return spec.model_copy(update={key: value for key, value in found.items() if getattr(spec, key) is None})


@lru_cache(maxsize=1)
def _node_kinds(_minute: int, _conf: str | None) -> list[Partition] | None:
    """What Slurm says, asked once a minute: a sweep checks all its jobs at once. None: no Slurm here."""
    if shutil.which("sinfo") is None:
        return None
    try:
        return node_kinds()
    except ClusterError as error:
        if any(words in str(error) for words in _NOT_HERE):
            return None
        raise


def _find(
    key: str, name: str | None, wanted: Mapping[str, int | None], known: Sequence[Partition]
) -> tuple[Partition | None, list[Problem]]:
    """The nodes of a partition that jobs would get; of several partitions (`a,b`) what nodes of all of them have."""
    names = list(dict.fromkeys(one.name for one in known))
    name = name or next((one.name for one in known if one.is_default), None)
    if name is None:
        return None, [Problem(key, None, "Slurm has no default partition", f"one of: {', '.join(sorted(names))}")]
    problems, found = [], []
    for part in name.split(","):
        kinds = [one for one in known if one.name == part]
        if not kinds:
            problems.append(Problem(key, name, f"Slurm has no partition {part}", did_you_mean(part, names)))
        elif not any(one.nodes for one in kinds):
            problems.append(Problem(key, name, f"partition {part} has no nodes", "another one"))
        else:
            found.append(_nodes(kinds, wanted))
    if problems:
        return None, problems
    limits = [one.max_hours for one in found if one.max_hours is not None]
    least = {field: min(getattr(one, field) for one in found) for field in (*_UNITS, "nodes")}
    return replace(found[0], name=name, max_hours=min(limits, default=None), **least), []


def _nodes(kinds: Sequence[Partition], wanted: Mapping[str, int | None]) -> Partition:
    """The largest kind that has what is wanted, else the largest at all; with the number of nodes that are as large."""
    enough = [one for one in kinds if _has(one, wanted)]
    # Whoever wants no GPU gets the node with most CPUs.
    counts = [field for field in _UNITS if not enough or wanted.get(field) is None]
    largest = max(enough or kinds, key=lambda one: [getattr(one, field) for field in counts])
    needed = {field: getattr(largest, field) if wanted.get(field) is None else wanted[field] for field in _UNITS}
    return replace(largest, nodes=sum(one.nodes for one in kinds if _has(one, needed)))


def _has(node: Partition, wanted: Mapping[str, int | None]) -> bool:
    return all(amount is None or getattr(node, field) >= amount for field, amount in wanted.items())


def _too_much(
    key: str, wanted: Mapping[str, int | None], place: Partition, known: Sequence[Partition]
) -> list[Problem]:
    """What a partition's nodes don't have, with the partitions that have it."""
    problems = []
    for field, amount in wanted.items():
        has = getattr(place, field)
        if amount is not None and amount > has:
            others = dict.fromkeys(one.name for one in known if _has(one, {field: amount}))
            hint = f"at most {has}" + (f", or partition {' or '.join(others)}" if others else "")
            message = f"the largest node of partition {place.name} has {has} {_UNITS[field]}"
            problems.append(Problem(key.format(field), amount, message, hint))
    return problems
