"""The jobs of a cluster, through submitit: on Slurm, as processes of this machine, or one in this process."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matrix.cluster import slurm
from matrix.cluster.folder import ClusterFolder
from matrix.cluster.kept import start_time
from matrix.cluster.slurm import JobStatus
from matrix.cluster.states import WorkerJob
from matrix.errors import ClusterError
from matrix.spec import SlurmCluster

Main = Callable[[], None]
"""What a job runs."""
_CLOCKS_S = 30
"""Seconds by which clocks may differ: half of the shortest time limit that Slurm knows."""
_REQUEUE_S = 60
"""Seconds for a node to leave, beside those in which it drains."""
_OF_A_JOB = re.compile("SLURM_(?!CONF$|CLUSTERS$)")
_PR_SET_PDEATHSIG = 1
"""Of prctl(2): a signal for when the parent has ended."""


def submit_head(folder: ClusterFolder, spec: SlurmCluster, main: Main) -> str:
    """Submit the head's job; returns its id."""
    (job,) = _submit(folder, spec, head_parameters(spec), [main])
    return job


def submit_workers(
    folder: ClusterFolder, spec: SlurmCluster, main: Main, count: int, *, replaces: str = ""
) -> list[WorkerJob]:
    """Submit workers: an array, or one job of so many nodes; the caller notes them."""
    options = spec.slurm
    one_job = options.one_job and count > 1 and spec.executor == "slurm"
    parameters = worker_parameters(spec, count if one_job else 1)
    ids = _submit(folder, spec, parameters, [main] * (1 if one_job else count))
    common: dict[str, Any] = {
        "partition": options.partition or "",
        "account": options.account or "",
        "qos": options.qos or "",
        "replaces": replaces,
        "spec": spec.model_dump(mode="json"),
    }
    return [WorkerJob(job, nodes=count if one_job else 1, **common) for job in ids]


def head_parameters(spec: SlurmCluster) -> dict[str, Any]:
    """Submitit's names for what the head's job asks for."""
    found = _parameters(spec, "head", spec.head.cpus, spec.head.mem_gb, spec.head.args)
    return found | ({"partition": spec.head.partition} if spec.head.partition else {})


def worker_parameters(spec: SlurmCluster, nodes: int) -> dict[str, Any]:
    """The same for a job of so many worker nodes."""
    found = _parameters(spec, "worker", spec.cpus_per_node, spec.mem_gb_per_node, spec.slurm.args)
    found |= {"nodes": nodes}
    return found | ({"gpus_per_node": spec.gpus_per_node} if spec.gpus_per_node else {})


def scripts(spec: SlurmCluster, folder: Path) -> dict[str, str]:
    """The sbatch scripts of a start, by name, as submitit makes them. Needs no Slurm."""
    from submitit.slurm.slurm import _make_sbatch_string

    one_job = spec.slurm.one_job and spec.workers > 1
    array = {} if one_job or spec.workers == 1 else {"map_count": spec.workers}
    workers = worker_parameters(spec, spec.workers if one_job else 1) | array
    command = f"python -u -m submitit.core._submit {folder}"
    return {
        "head": str(_make_sbatch_string(command=command, folder=folder, **head_parameters(spec))),
        "workers": str(_make_sbatch_string(command=command, folder=folder, **workers)),
    }


def states(executor: str, ids: Iterable[str]) -> dict[str, JobStatus]:
    """How jobs are; those that nobody knows any more are left out.

    Raises:
        ClusterError: Slurm doesn't answer.
    """
    if executor == "slurm":
        return slurm.job_states(list(ids))
    return {job: JobStatus(job, "RUNNING", "", socket.gethostname(), 0, 0, 0) for job in ids if _lives(executor, job)}


def living(executor: str, ids: Iterable[str]) -> list[str]:
    """Those jobs that run, or wait to."""
    return [job for job, status in states(executor, ids).items() if not slurm.is_over(status.state)]


def cancel(executor: str, ids: Iterable[str], number: int = signal.SIGTERM) -> None:
    """End jobs; returns at once."""
    wanted = list(ids)
    if executor == "slurm":
        slurm.cancel(wanted)
        return
    for job in (one for one in wanted if _lives(executor, one)):
        # The job's own process is a child of submitit's controller, which hands the signal on, but for SIGKILL.
        for pid in [*(_children(job) if number == signal.SIGKILL else []), int(job)]:
            with _gone_is_fine():
                os.kill(pid, number)


def job_id(executor: str) -> str:
    """Of the job that this process is."""
    if executor == "slurm":
        array = os.environ.get("SLURM_ARRAY_JOB_ID")
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
    return os.environ.get("SUBMITIT_LOCAL_JOB_ID") or str(os.getpid())


def rank(executor: str) -> int:
    """Number of this process in a job of several nodes."""
    return int(os.environ.get("SLURM_PROCID", "0")) if executor == "slurm" else 0


def may_come_back(executor: str, job: str) -> bool:
    """Whether Slurm would start this job again: its time is over, it is being preempted, or somebody has requeued it.

    One that was cancelled isn't `RUNNING` any more; of one that is requeued the end is still to come.
    """
    found = states(executor, [job]).get(job) if executor == "slurm" else None
    if found is None or found.state != "COMPLETING":
        return found is not None and found.state == "RUNNING"
    return not found.ends or found.ends > time.time() + _CLOCKS_S


def put_back() -> None:
    """Put the Slurm job that this process is back into the queue; Slurm ends the process."""
    # Of an array each task has an id of its own, which scontrol wants.
    slurm.requeue(os.environ["SLURM_JOB_ID"])


def _parameters(
    spec: SlurmCluster, role: str, cpus: int | None, mem_gb: int | None, args: Mapping[str, Any]
) -> dict[str, Any]:
    options = spec.slurm
    minutes = max(1, round((spec.max_hours or 24) * 60))
    named = {"partition": options.partition, "account": options.account, "qos": options.qos, "cpus_per_task": cpus}
    return {
        "job_name": f"matrix-{spec.id}-{role}",
        "ntasks_per_node": 1,
        "time": minutes,
        "signal_delay_s": min(int(spec.drain_s) + _REQUEUE_S, minutes * 30),
        "stderr_to_stdout": True,
        "array_parallelism": 100_000,
        "additional_parameters": {"requeue": True, **_flags(args)},
        **({"mem": f"{mem_gb}GB"} if mem_gb else {}),
        **{name: value for name, value in named.items() if value is not None},
    }


def _flags(args: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("_", "-"): value for name, value in args.items() if value is not None and value is not False}


def _submit(folder: ClusterFolder, spec: SlurmCluster, parameters: dict[str, Any], mains: list[Main]) -> list[str]:
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    if spec.executor == "slurm" and (shutil.which("sbatch") is None or shutil.which("srun") is None):
        way_out = "type this on a login node of Slurm, or take cluster.executor=local"
        raise ClusterError(f"sbatch and srun are not installed on this machine: {way_out}")
    before: list[Any] = [] if spec.executor == "slurm" else [_session]
    if spec.executor == "slurm":
        executor: Any = submitit.SlurmExecutor(folder.jobs)
        executor.update_parameters(**parameters)
    else:
        executor = submitit.LocalExecutor(folder.jobs)
        executor.update_parameters(timeout_min=parameters["time"], signal_delay_s=parameters["signal_delay_s"])
        executor.update_parameters(stderr_to_stdout=True, gpus_per_node=parameters.get("gpus_per_node", 0))
    try:
        with _of_its_own(), executor.batch():
            jobs = [executor.submit(*before, main) for main in mains]
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        said = [line for line in str(error).splitlines() if "sbatch:" in line] or str(error).splitlines()[-3:]
        raise ClusterError("Slurm refuses the job: " + "; ".join(line.strip() for line in said)) from error
    return [str(job.job_id) for job in jobs]


def _session(main: Main) -> None:
    """A local job: what the terminal sends the processes of its submitter's session isn't meant for it."""
    os.setsid()
    # Killed, submitit's controller hands no signal on: without one of its own the job would stay, known to nobody.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    main()


@contextmanager
def _of_its_own() -> Iterator[None]:
    """What is started in the block has nothing to do with this terminal: a local job lives on."""
    if threading.current_thread() is not threading.main_thread():
        # The head's: it has no terminal.
        yield
        return
    # What the job that this is typed in has (salloc, srun --pty) would be taken for the new one's.
    typed_in = {name: os.environ.pop(name) for name in list(os.environ) if _OF_A_JOB.match(name)}
    numbers: tuple[int, ...] = (signal.SIGINT, signal.SIGHUP, signal.SIGTSTP)
    handlers = [signal.getsignal(number) for number in numbers]
    saved = [os.dup(standard) for standard in (0, 1, 2)]
    nothing = os.open(os.devnull, os.O_RDWR)
    try:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        for standard in (0, 1, 2):
            os.dup2(nothing, standard)
        yield
    finally:
        for standard, one in enumerate(saved):
            os.dup2(one, standard)
            os.close(one)
        os.close(nothing)
        os.environ.update(typed_in)
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler or signal.SIG_DFL)


def _lives(executor: str, pid: str) -> bool:
    try:
        # A process that was given the id since is none of ours.
        is_ours = executor == "debug" or b"submitit" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return is_ours and start_time(int(pid)) is not None


def _children(pid: str) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[1] == pid:
            found.append(int(entry.parent.name))
    return found


@contextmanager
def _gone_is_fine() -> Iterator[None]:
    try:
        yield
    except ProcessLookupError:
        return
