"""Start, grow, shrink and end a cluster: what commands do from outside."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from matrix.cluster import jobs, slurm
from matrix.cluster.folder import ClusterFolder, create, find, home_of, locked
from matrix.cluster.head import Head
from matrix.cluster.states import CommandPhase, WorkerJob, write
from matrix.cluster.waiting import LiveLine, wait_for_head, wait_for_workers
from matrix.cluster.worker import Worker
from matrix.errors import ClusterError
from matrix.spec import SlurmCluster

_HEAD_LEAVES_S = 75.0
"""Seconds for the head to end by itself: commands inside may take most of it."""
_CANCELLED_S = 120.0
_KILL_AFTER_S = 20.0
_LOOK_S = 0.2
_ASK_S = 1.0


def start(
    spec: SlurmCluster,
    live: LiveLine,
    *,
    for_runs: bool = False,
    grows: bool = True,
    wait: bool = True,
    hand_over: Callable[[ClusterFolder], None] = lambda _: None,
    take_back: Callable[[], None] = lambda: None,
) -> ClusterFolder:
    """Start a cluster, or take the one that is there.

    Args:
        spec: What to start, with everything that Slurm knows filled in.
        live: Told what is waited for.
        for_runs: One that is started is there for the commands inside it, and ends with the last of them.
        grows: One that is there gets `workers` more.
        wait: Wait for the head and the workers.
        hand_over: Hands a command over as soon as there is a cluster: it goes on without this process.
        take_back: Takes it back, if nobody has begun with it.

    Raises:
        ClusterError: It doesn't come up. What was submitted for it is cancelled; a cluster that was there stays.
    """
    home = home_of(spec)
    with locked(home, live.say):
        folder = find_living(spec, live)
        is_new = folder is None
        if folder is not None and not for_runs:
            folder.change(for_runs=False)
        if folder is not None and not grows:
            hand_over(folder)
            return folder
        if folder is None:
            folder = create(spec, for_runs=for_runs)
        elif folder.cluster().executor != spec.executor:
            raise ClusterError(
                f"cluster.executor={spec.executor}: the cluster {spec.id} runs with {folder.cluster().executor}; "
                "another cluster.id starts one beside it"
            )
        added = _submit(folder, spec, live, is_new=is_new)
        hand_over(folder)
    if spec.executor == "debug" or not wait:
        return folder
    try:
        wait_for_head(folder, live.show)
        wanted = spec.min_workers or spec.workers
        others = sum(worker.nodes for worker in folder.cluster().workers if worker.wanted and worker not in added)
        wait_for_workers(folder, min(wanted, spec.workers) + (0 if is_new else others), live.show)
    except (ClusterError, KeyboardInterrupt):
        take_back()
        if is_new and all(command.has_ended for command in folder.commands()):
            live.say("Ending what was started ...")
            stop(folder, live)
        elif is_new:
            live.say(f"The cluster {spec.id} stays: others run inside it")
        else:
            remove_workers(folder, [worker.job_id for worker in added], live)
        raise
    return folder


def find_up(spec: SlurmCluster, live: LiveLine, hand_over: Callable[[ClusterFolder], None]) -> None:
    """Hand a command over to the cluster of the spec's id.

    Raises:
        ClusterError: There is none.
    """
    with locked(home_of(spec), live.say):
        folder = find_living(spec, live)
        if folder is not None:
            hand_over(folder)
    if folder is None:
        raise ClusterError(f"there is no cluster {spec.id} (cluster.id): matrix start_cluster cluster=slurm starts one")


def find_living(spec: SlurmCluster, live: LiveLine) -> ClusterFolder | None:
    """The cluster of the spec's id; what a dead one has left is cleared away. The caller holds the lock."""
    folder = find(home_of(spec))
    if folder is None or lives(folder):
        return folder
    if folder.cluster().stopping:
        live.say(f"The cluster {spec.id} is ending; waiting for it ...")
        _wait_until_gone(folder, live)
    else:
        live.say(f"The cluster {spec.id} is dead; what it left is cleared away")
    _clear_away(folder)
    return None


def plan(spec: SlurmCluster) -> dict[str, str]:
    """The sbatch scripts of a start by the files that they are written to, in the folder of the cluster's id."""
    place = home_of(spec) / "plan"
    with locked(home_of(spec)):
        place.mkdir(exist_ok=True)
        found = {str(place / f"{name}.sh"): text for name, text in jobs.scripts(spec, place).items()}
        for path, text in found.items():
            write(Path(path), text)
    return found


def lives(folder: ClusterFolder) -> bool:
    """Whether a cluster's head is up, or will be.

    Raises:
        ClusterError: It says nothing, and Slurm can't be asked.
    """
    cluster, head = folder.cluster(), folder.head()
    if cluster.stopping or not cluster.head_job or (head is not None and head.phase in ("ended", "failed")):
        return False
    if head is not None and not head.is_silent:
        return True
    return bool(jobs.living(cluster.executor, [cluster.head_job]))


def stop(folder: ClusterFolder, live: LiveLine) -> None:
    """End a cluster with all that runs on it; returns when nothing of it is left.

    Raises:
        ClusterError: A job doesn't end, or Slurm can't be asked.
    """
    with folder.lock(live.say):
        if not folder.is_current:
            return
        cluster = folder.change(stopping=True)
        _wait_until_gone(folder, live)
        _clear_away(folder)
    live.say(f"Stopped the cluster {cluster.id}")


def _wait_until_gone(folder: ClusterFolder, live: LiveLine) -> None:
    """Wait until a head that ends by itself has ended, but not for ever."""
    cluster, deadline = folder.cluster(), time.monotonic() + _HEAD_LEAVES_S
    while time.monotonic() < deadline:
        head = folder.head()
        if head is None or head.phase in ("ended", "failed", "requeued") or not head.is_fresh:
            return
        if head.is_silent and not jobs.living(cluster.executor, [cluster.head_job]):
            return
        live.show(f"head: {head.phase}, waiting until its commands have ended")
        time.sleep(_LOOK_S)


def _clear_away(folder: ClusterFolder) -> None:
    """End what is left of a cluster; the caller holds the lock."""
    _end_jobs(folder)
    for command in folder.commands():
        if not command.has_ended:
            # It never started, or its head couldn't say what became of it.
            phase: CommandPhase = "lost" if command.starts else "stopped"
            replace(command, phase=phase, exit_code=1).write(folder.command_file(command.key))
    folder.retire()


def end(folder: ClusterFolder, live: LiveLine) -> None:
    """End a cluster whose commands have all ended; returns when it is gone, or at once if another one has come in."""
    with folder.lock(live.say):
        if not all(command.has_ended for command in folder.commands()):
            return
        folder.change(stopping=True)
    _wait_until_gone(folder, live)
    with folder.lock(live.say):
        _clear_away(folder)


def remove_workers(folder: ClusterFolder, job_ids: Sequence[str], live: LiveLine) -> None:
    """Let workers finish what they are working on, and end them; returns when they are gone.

    Raises:
        ClusterError: A job doesn't end, or Slurm can't be asked.
    """
    ids = list(job_ids)
    with folder.lock(live.say):
        folder.dismiss(ids)
    cluster, spec = folder.cluster(), folder.spec()
    waiting = [job for job, one in jobs.states(cluster.executor, ids).items() if one.state in slurm.WAITING]
    jobs.cancel(cluster.executor, waiting)
    deadline = time.monotonic() + spec.drain_s + _KILL_AFTER_S
    while (left := jobs.living(cluster.executor, ids)) and time.monotonic() < deadline:
        live.show(f"workers: {len(left)} of {len(ids)} finish what they are working on")
        time.sleep(_ASK_S)
    _end(cluster.executor, left)


def newest(folder: ClusterFolder, count: int) -> list[WorkerJob]:
    """The jobs of the `count` worker nodes that came last.

    Raises:
        ClusterError: There aren't so many, or they don't end with a whole job.
    """
    workers = [worker for worker in folder.cluster().workers if worker.wanted]
    total = sum(worker.nodes for worker in workers)
    found: list[WorkerJob] = []
    for worker in reversed(workers):
        if sum(one.nodes for one in found) < count:
            found.append(worker)
    nodes = sum(one.nodes for one in found)
    if count > total:
        raise ClusterError(f"count={count}: the cluster has {total} workers")
    if nodes != count:
        raise ClusterError(f"count={count}: job {found[-1].job_id} has {found[-1].nodes} nodes, which end together")
    return found


def _submit(folder: ClusterFolder, spec: SlurmCluster, live: LiveLine, *, is_new: bool) -> list[WorkerJob]:
    """Submit head and workers, and note them; what can't be submitted whole is cancelled."""
    path, plain = str(folder.path), spec.model_dump_json()
    try:
        if is_new and spec.executor == "debug":
            folder.change(head_job=jobs.job_id("debug"))
            return []
        if is_new:
            head = jobs.submit_head(folder, spec, Head(path, plain))
            folder.change(head_job=head)
            live.say(f"Submitted the head of cluster {spec.id}: job {head}")
        added = jobs.submit_workers(folder, spec, Worker(path, plain), spec.workers)
        folder.add_workers(added)
    except BaseException:
        if is_new:
            _clear_away(folder)
        raise
    ids = [worker.job_id for worker in added]
    listed = ids[0] if len(ids) == 1 else f"{ids[0]} to {ids[-1]}"
    workers, several = f"{spec.workers} worker{'s' if spec.workers > 1 else ''}", "s" if len(ids) > 1 else ""
    live.say(f"Submitted {workers}: job{several} {listed}")
    return added


def run_here(folder: ClusterFolder, spec: SlurmCluster) -> None:
    """The head in this process (`executor=debug`), until Ctrl-C or `matrix stop_cluster`."""
    import submitit

    executor = submitit.DebugExecutor(folder.jobs)
    executor.submit(Head(str(folder.path), spec.model_dump_json())).result()


def _end_jobs(folder: ClusterFolder) -> None:
    cluster = folder.cluster()
    _end(cluster.executor, [job for job in [cluster.head_job, *(w.job_id for w in cluster.workers)] if job])


def _end(executor: str, ids: Sequence[str]) -> None:
    """Cancel jobs; returns when they are gone."""
    left = jobs.living(executor, ids)
    jobs.cancel(executor, left)
    began = time.monotonic()
    while left := jobs.living(executor, left):
        waited = time.monotonic() - began
        if waited > _CANCELLED_S:
            raise ClusterError(f"jobs {', '.join(left)} don't end within {_CANCELLED_S:.0f} s after scancel")
        if executor != "slurm" and waited > _KILL_AFTER_S:
            jobs.cancel(executor, left, signal.SIGKILL)
        time.sleep(_LOOK_S)
