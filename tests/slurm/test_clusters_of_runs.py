"""Clusters that a run starts for itself on a real Slurm, and that end with it."""

from __future__ import annotations

from tests.slurm.clusters import SIMULATED, SMALL, assert_whole, run_dir
from tests.slurm.login import Login


def test_a_cluster_that_a_run_starts_ends_with_it(login: Login) -> None:
    done = login.run(*SMALL, *SIMULATED)
    assert_whole(run_dir(login))
    assert "48 ok, 0 errors" in done.stdout
    assert login.leftovers() == []
    # Detached as well: nobody is there to switch the light off.
    login.run(*SMALL, *SIMULATED, "run.detach=true", "run.dir=detached")
    login.wait_for(lambda: not login.squeue(), 90, "the cluster has ended by itself")
    assert_whole(login.cwd / "detached")


def test_vllm_on_a_node(login: Login) -> None:
    """The main job as it is: a real model."""
    small = [one for one in SMALL if "mem_gb" not in one]
    options = ["cluster.mem_gb_per_node=5", "cluster.head.mem_gb=1", "cluster.start_timeout_s=300"]
    done = login.run(*small, *options, "tracker=none", "dataset.limit=4", "engine.cpus=2", timeout_s=500)
    assert_whole(run_dir(login), rows=4)
    assert "4 ok, 0 errors" in done.stdout
