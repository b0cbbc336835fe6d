"""`matrix start_cluster`."""

from __future__ import annotations

from matrix.api import Cli
from matrix.cluster.waiting import LiveLine
from matrix.commands.arguments import flag, split

HELP = """\
usage: matrix start_cluster [cluster=slurm|local] [wait=false] [plan=true] [OVERRIDES]

Start a Ray cluster that stays; matrix stop_cluster ends it. Where there is one already, cluster=slurm adds
cluster.workers more to it: also of another partition.

  wait   false: return once the jobs are submitted
  plan   true: print the sbatch scripts, submit nothing

  matrix start_cluster cluster=slurm cluster.workers=4
  matrix start_cluster cluster=slurm cluster.workers=16 cluster.min_workers=4 cluster.slurm.partition=gpu \\
      cluster.slurm.account=research cluster.slurm.qos=high cluster.slurm.args.constraint=h100
  matrix start_cluster cluster=slurm cluster.slurm.one_job=true cluster.workers=2
  matrix start_cluster cluster=slurm cluster.id=second      # another one beside it
  matrix start_cluster cluster=slurm cluster.executor=local # the same jobs as processes of this machine
  matrix start_cluster                                      # Ray on this machine

Afterwards: matrix status, python run.py cluster=slurm ..., matrix deploy_applications cluster=slurm ...,
matrix remove_workers, matrix stop_cluster
"""

_OWN = {"wait": "true", "plan": "false"}


def main(arguments: list[str]) -> int:
    """Run it; returns the exit code."""
    own, overrides = split(arguments, _OWN, overrides=True)
    live = LiveLine()
    cli = Cli()
    if flag(own, "plan"):
        print(cli.plan_cluster(overrides))
        return 0
    cli.start_cluster(overrides, wait=flag(own, "wait"), live=live)
    live.say("The cluster is up: matrix status shows it" if flag(own, "wait") else "Submitted: matrix status shows it")
    return 0
