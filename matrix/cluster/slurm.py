"""What Slurm is asked: its partitions, and jobs."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from matrix.errors import ClusterError

_ASK_S = 20.0
_OWN_FORMATS = ("SINFO_", "SQUEUE_", "SACCT_", "SCANCEL_", "SLURM_TIME_FORMAT")
"""Variables by which a user has Slurm's programs list less, or in other words."""

WAITING = frozenset(
    {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
)
"""States of a job that has no nodes yet."""
LIVING = frozenset({"RUNNING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED"})
"""States of a job that has nodes."""


@dataclass(frozen=True)
class Partition:
    """A partition of Slurm. CPUs, memory and GPUs are those of its largest node.

    Attributes:
        name: Its name.
        is_default: Jobs go there that ask for none.
        is_up: It starts jobs.
        nodes: Number of nodes, whatever their state.
        cpus: CPUs that a job may have of a node.
        mem_gb: Memory in GB, rounded down.
        gpus: GPUs of all types.
        gpu_type: The type of most of them; empty if Slurm has no name for it, or there are none.
        max_hours: Its time limit; None: it has none.
    """

    name: str
    is_default: bool
    is_up: bool
    nodes: int
    cpus: int
    mem_gb: int
    gpus: int
    gpu_type: str
    max_hours: float | None


@dataclass(frozen=True)
class JobStatus:
    """A job, or a task of an array.

    Attributes:
        id: As it was asked for (`123`, `123_0`).
        state: Slurm's (`PENDING`, `RUNNING`, `CANCELLED`, ...).
        reason: Why it waits, or why it ended; empty if Slurm has none, or has forgotten it.
        node: Its nodes in Slurm's notation (`n[1-3]`); empty if it has none.
        submitted: Unix time; a requeue counts as one.
        started: Unix time; 0: not yet.
        ends: Unix time at which it ended, or will at the latest; 0: isn't known.
    """

    id: str
    state: str
    reason: str
    node: str
    submitted: float
    started: float
    ends: float


def node_kinds() -> list[Partition]:
    """The partitions that this user may see, each once for each kind of nodes that it has.

    Raises:
        ClusterError: Slurm doesn't answer.
    """
    return parse_kinds(_ask("sinfo", "-h", "-e", "-o", "%P|%a|%D|%c|%B|%m|%l|%G"))


def job_states(ids: Iterable[str]) -> dict[str, JobStatus]:
    """How jobs are, by their ids (`123`, `123_0` for a task of an array); those that Slurm doesn't know are left out.

    A job that ended some minutes ago is known to Slurm's accounting alone. A task of an array that was cancelled before
    it started is known to nobody.

    Raises:
        ClusterError: Slurm doesn't answer.
    """
    wanted = set(ids)
    if not wanted:
        return {}
    found = parse_jobs(_ask_jobs("squeue", "-h", "-r", "-t", "all", "-o", "%i|%T|%r|%N|%V|%S|%e", "-j", wanted))
    if unknown := wanted - found.keys():
        columns = "JobID,State,NodeList,Submit,Start,End"
        found |= parse_ended(_ask_jobs("sacct", "-n", "-X", "-P", "-o", columns, "-j", unknown))
    return {id_: found[id_] for id_ in sorted(wanted & found.keys())}


def is_over(state: str) -> bool:
    """Whether a job in this state never runs again."""
    return state not in WAITING and state not in LIVING


def cancel(ids: Iterable[str]) -> None:
    """Cancel jobs; those that are over are left as they are.

    Raises:
        ClusterError: Slurm doesn't answer, or refuses it.
    """
    if wanted := sorted(set(ids)):
        _ask("scancel", "-Q", *wanted)


def requeue(job_id: str) -> None:
    """Have a job start again from its beginning, under its id; one that waits already goes on waiting.

    Raises:
        ClusterError: Slurm doesn't answer, or refuses it.
    """
    try:
        _ask("scontrol", "requeue", job_id)
    except ClusterError as error:
        if "Job is pending execution" not in str(error):
            raise


def parse_kinds(text: str) -> list[Partition]:
    """From sinfo's lines, one for each kind of nodes of a partition."""
    kinds = []
    for line in text.splitlines():
        name, up, count, cpus, most_cpus, mem_mb, limit, gres = line.split("|")
        gpus, gpu_type = parse_gres(gres)
        some = Partition(
            name.removesuffix("*"), name.endswith("*"), up == "up", int(count),
            min(int(cpus), int(most_cpus)) if most_cpus.isdigit() else int(cpus),
            int(mem_mb) // 1024, gpus, gpu_type, parse_hours(limit),
        )  # fmt: skip
        kinds.append(some)
    return kinds


def parse_gres(text: str) -> tuple[int, str]:
    """GPUs of a node by its generic resources (`gpu:h100:8(S:0-1),nic:2`), and the type of most of them."""
    by_type: dict[str, int] = {}
    for some in re.sub(r"\([^)]*\)", "", text).split(","):
        name, *rest = some.split(":")
        if name == "gpu":
            count = int(rest.pop()) if rest and rest[-1].isdigit() else 1
            kind = next((part for part in rest if part != "no_consume"), "")
            by_type[kind] = by_type.get(kind, 0) + count
    return sum(by_type.values()), max(by_type, key=lambda kind: by_type[kind], default="")


def parse_hours(text: str) -> float | None:
    """A time limit (`1-00:00:00`, `30:00`) in hours; None if there is none."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return days * 24 + hours + minutes / 60 + seconds / 3600


def parse_jobs(text: str) -> dict[str, JobStatus]:
    """From squeue's lines, by id."""
    jobs = {}
    for line in text.splitlines():
        id_, state, reason, node, submitted, started, ends = line.split("|")
        waits = state in WAITING
        # Of a job that waits they are guesses.
        times = (_time(submitted), 0.0 if waits else _time(started), 0.0 if waits else _time(ends))
        jobs[id_] = JobStatus(id_, state, "" if reason == "None" else reason, node, *times)
    return jobs


def parse_ended(text: str) -> dict[str, JobStatus]:
    """From sacct's lines, by id; of several lines about a job the last one counts."""
    jobs = {}
    for line in text.splitlines():
        id_, state, node, *times = line.split("|")
        node = "" if node == "None assigned" else node
        submitted, started, ends = map(_time, times)
        # `CANCELLED by 0`: the user's id.
        jobs[id_] = JobStatus(id_, state.split()[0], "", node, submitted, started, ends)
    return jobs


def _time(text: str) -> float:
    """0 for `N/A`, `Unknown` and `None`."""
    return float(text) if text.isdigit() else 0.0


def _ask_jobs(program: str, *words: str | set[str]) -> str:
    """Ask about jobs: what Slurm doesn't know, or keeps no books about, is no failure."""
    try:
        return _ask(program, *(word if isinstance(word, str) else ",".join(sorted(word)) for word in words))
    except ClusterError as error:
        if "Invalid job id specified" in str(error) or "accounting storage is disabled" in str(error):
            return ""
        raise


def _ask(program: str, *words: str, tries: int = 3) -> str:
    unset = {name: value for name, value in os.environ.items() if not name.startswith(_OWN_FORMATS)}
    environment = {**unset, "SLURM_TIME_FORMAT": "%s", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            [program, *words], env=environment, capture_output=True, text=True, timeout=_ASK_S, check=True
        )
    except FileNotFoundError as error:
        raise ClusterError(f"{program} is not installed here: Slurm is asked from its login node") from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"Slurm doesn't answer: {program} took more than {_ASK_S:g} s") from error
    except subprocess.CalledProcessError as error:
        if error.returncode < 0 and tries > 1:
            # Slurm signals every process of a job, also one by which the job asks it.
            return _ask(program, *words, tries=tries - 1)
        said = " ".join(error.stderr.split()) or f"exit code {error.returncode}"
        raise ClusterError(f"{program}: {said}") from error
    return done.stdout
