"""`matrix remove_workers`."""

from __future__ import annotations

from matrix.cluster import launch
from matrix.cluster.waiting import LiveLine
from matrix.commands import clusters
from matrix.commands.arguments import split
from matrix.errors import ClusterError, ConfigError, Problem, did_you_mean

HELP = """\
usage: matrix remove_workers count=N | jobs=ID,... [cluster.id=NAME] [cluster.root=FOLDER]

Take workers away from a cluster of jobs. They finish what they are working on (cluster.drain_s), their replicas move
to other nodes where there is room.

  count   so many worker nodes, those that came last
  jobs    these jobs, as matrix status lists them
"""

_OWN = {"count": "", "jobs": "", **clusters.OWN}


def main(arguments: list[str]) -> int:
    """Run it; returns the exit code."""
    own, _ = split(arguments, _OWN, overrides=False)
    if bool(own["count"]) == bool(own["jobs"]):
        raise ConfigError(
            [Problem("count", own["count"] or None, "give either count=N or jobs=ID,...")], "Nothing done."
        )
    if own["count"] and not (own["count"].isdigit() and int(own["count"])):
        raise ConfigError([Problem("count", own["count"], "should be a number from 1 on")], "Nothing done.")
    folder = clusters.named(own)
    if folder is None:
        raise ClusterError("there is no cluster of jobs: matrix start_cluster cluster=slurm starts one")
    ids = own["jobs"].split(",") if own["jobs"] else [w.job_id for w in launch.newest(folder, int(own["count"]))]
    known = [worker.job_id for worker in folder.cluster().workers if worker.wanted]
    for job in ids:
        if job not in known:
            raise ClusterError(f"jobs={job}: no worker of this cluster ({did_you_mean(job, known)})")
    live = LiveLine()
    launch.remove_workers(folder, ids, live)
    live.say(f"Removed {', '.join(ids)}")
    return 0
