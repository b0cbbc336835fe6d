"""Clusters on a real Slurm: started, grown, shrunk, stopped; what goes wrong on the way; nothing left."""

from __future__ import annotations

import json
import os
import re
import signal
import sys

from tests.slurm.clusters import ENGINE, SMALL, run_dir, status, ups
from tests.slurm.login import MATRIX, PATIENCE, Login


def test_a_cluster_is_started_grown_used_shrunk_and_stopped(login: Login) -> None:
    login.matrix(
        "start_cluster", *SMALL, "cluster.workers=2", "cluster.slurm.account=other", "cluster.resources.disk=1"
    )
    found = status(login)
    assert (found["phase"], len(found["workers"])) == ("up", 2)
    assert [worker["state"] for worker in found["workers"]] == ["RUNNING", "RUNNING"]
    assert re.fullmatch(r"\d+_0", found["workers"][0]["job"])
    # Again: more workers, of another partition.
    login.matrix("start_cluster", *SMALL, "cluster.slurm.partition=low")
    login.wait_for(lambda: len(status(login)["nodes"]) == 4, 10, "Ray knows three workers and the head")
    found = status(login)
    labels = [set(node["total"]) - {"CPU", "GPU"} for node in found["nodes"]]
    assert sorted(labels, key=len) == [set(), {"partition_low"}, *[{"account_other", "disk"}] * 2]
    # An app that is pinned goes to the new one; its directory of runs is that of the terminal.
    login.matrix("deploy_applications", "cluster=slurm", *ENGINE, "engine.resources.partition_low=1")
    (app,) = status(login)["apps"]
    (low,) = [worker for worker in found["workers"] if worker["partition"] == "low"]
    assert app["replicas"][0]["url"].startswith(f"http://{low['on'][0]['ip']}:")
    assert "app pretend is healthy" in login.matrix("check_health", "app=pretend").stdout
    assert len(login.matrix("status", "--key").stdout.strip()) > 20
    (login.cwd / "q.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    login.matrix("inference", "app=pretend", "cluster=slurm", "input=q.jsonl", "output=a.jsonl")
    assert len((login.cwd / "a.jsonl").read_text().splitlines()) == 2
    # Fewer: the one that came last finishes what it has, its replica finds no other node with that label.
    login.matrix("remove_workers", "count=1")
    assert low["job"] not in ups(login)
    assert len(ups(login)) == 2
    assert "count=3: the cluster has 2 workers" in login.matrix("remove_workers", "count=3", code=1).stderr
    login.matrix("stop_cluster")
    assert login.leftovers() == []
    assert "there is no cluster" in login.matrix("status", code=1).stderr
    login.matrix("stop_cluster", code=1)


def test_one_job_of_two_nodes(login: Login) -> None:
    big = [one for one in SMALL if "cpus_per_node" not in one]
    # Of all CPUs of a node, so that the two tasks are on two nodes; the head is on the third.
    options = [*big, "cluster.cpus_per_node=8", "cluster.slurm.one_job=true", "cluster.workers=2"]
    login.matrix("start_cluster", *options)
    found = status(login)
    (worker,) = found["workers"]
    assert worker["nodes"] == 2
    assert len({node["host"] for node in worker["on"]} | {found["head"]["host"]}) == 3
    assert "2 nodes, which end together" in login.matrix("remove_workers", "count=1", code=1).stderr
    login.matrix("remove_workers", f"jobs={worker['job']}")
    assert ups(login) == []


def test_a_start_that_waits_too_long_says_why_and_leaves_nothing(login: Login) -> None:
    big = [one for one in SMALL if "cpus_per_node" not in one]
    done = login.matrix(
        "start_cluster", *big, "cluster.cpus_per_node=8", "cluster.workers=3", "cluster.queue_timeout_s=12", code=1
    )
    assert "2 of 3 workers have joined" in done.stderr
    assert "cluster.queue_timeout_s=12" in done.stderr
    assert "PENDING (Resources)" in done.stderr
    assert login.leftovers() == []
    # With fewer to wait for it is a start; the third may still come.
    login.matrix("start_cluster", *big, "cluster.cpus_per_node=8", "cluster.workers=3", "cluster.min_workers=2")
    assert len(ups(login)) == 2


def test_what_slurm_refuses_is_said_in_its_words_and_leaves_nothing(login: Login) -> None:
    done = login.matrix("start_cluster", *SMALL, "cluster.slurm.account=nobody", code=1)
    assert "Invalid account or account/partition combination" in done.stderr
    done = login.matrix("start_cluster", *SMALL, "cluster.slurm.partition=limted", code=2)
    assert "did you mean limited?" in done.stderr
    done = login.matrix("start_cluster", *SMALL, "cluster.slurm.partition=limited", "cluster.max_hours=2", code=2)
    assert "at most 1" in done.stderr
    done = login.matrix("start_cluster", *SMALL, "cluster.slurm.args.constraint=purple", code=1)
    assert "Invalid feature specification" in done.stderr
    assert login.leftovers() == []


def test_a_plan_submits_nothing(login: Login) -> None:
    done = login.matrix("start_cluster", *SMALL, "cluster.workers=3", "cluster.slurm.args.nice=7", "plan=true")
    assert "#SBATCH --array=0-2" in done.stdout
    assert "#SBATCH --nice=7" in done.stdout
    assert login.squeue() == []
    kept = login.matrix_dir / "clusters" / "slurm" / "plan"
    assert (kept / "workers.sh").read_text() in done.stdout
    assert (kept / "head.sh").read_text() in done.stdout


def test_two_clusters_on_the_same_nodes(login: Login) -> None:
    for name in ("a", "b"):
        # All on one node, so that ports and folders have to differ.
        login.matrix("start_cluster", *SMALL, f"cluster.id={name}", "cluster.slurm.args.nodelist=n1")
    assert "give cluster.id=a or b" in login.matrix("status", code=1).stderr
    for name in ("a", "b"):
        login.run("cluster=slurm", f"cluster.id={name}", *ENGINE, "tracker=none", f"run.dir={name}")
        found = status(login, f"cluster.id={name}")
        assert {found["head"]["host"], found["workers"][0]["on"][0]["host"]} == {"n1"}
        assert len(found["nodes"]) == 2
        assert len((login.cwd / name / "rows.jsonl").read_text().splitlines()) == 48
    login.matrix("stop_cluster", "cluster.id=a")
    assert status(login)["id"] == "b"
    assert ups(login)


def test_two_starts_at_once_make_one_cluster(login: Login) -> None:
    both = [login.start(*MATRIX, "start_cluster", *SMALL) for _ in range(2)]
    for process in both:
        assert process.wait(PATIENCE * 120) == 0, login.said(process)
    found = status(login)
    assert len(found["workers"]) == 2
    assert len([job for job in login.squeue() if job["name"].endswith("head")]) == 1


def test_ctrl_c_of_a_start_leaves_nothing(login: Login) -> None:
    process = login.start(*MATRIX, "start_cluster", *SMALL, "cluster.slurm.args.begin=now+1hour")
    login.wait_for(lambda: "PENDING (BeginTime)" in login.said(process), 30, "the reason for pending")
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(PATIENCE * 60) == 130, login.said(process)
    assert login.leftovers() == []


def test_a_cluster_of_this_machine(login: Login) -> None:
    """The same jobs as processes: what `executor=local` and `debug` are for."""
    here = [*SMALL, "cluster.executor=local", "cluster.workers=2"]
    login.matrix("start_cluster", *here)
    assert len(ups(login)) == 2
    (worker, other) = ups(login)
    os.kill(int(worker), signal.SIGKILL)
    login.wait_for(lambda: len(ups(login)) == 2 and worker not in ups(login), 60, "another worker takes its place")
    assert other in ups(login)
    login.matrix("stop_cluster")
    assert login.leftovers() == []
    debug = [*SMALL, "cluster.executor=debug", *ENGINE, "tracker=none"]
    done = login.run(*debug)
    assert "48 ok" in done.stdout
    assert json.loads((run_dir(login) / "state.json").read_text())["status"] == "succeeded"


def test_monitoring_follows_the_nodes(login: Login) -> None:
    login.matrix("start_cluster", *SMALL, "cluster.monitoring=true", "cluster.dashboard=true")
    head = status(login)["head"]
    port = head["monitoring"]["prometheus"]
    said = login.matrix("status").stdout
    for name, its in (("prometheus", port), ("dashboard", head["dashboard_port"])):
        assert f"{name}: ssh -N -L {its}:127.0.0.1:{its} {head['host']}" in said

    def up() -> int:
        ask = (
            "import json, urllib.request as r; "
            f"print(r.urlopen('http://127.0.0.1:{port}/api/v1/query?query=sum(up)').read().decode())"
        )
        found = json.loads(login.slurm.on(head["host"], sys.executable, "-c", ask))["data"]["result"]
        return int(found[0]["value"][1]) if found else 0

    # Head and worker; then another one, and the front door; then one less.
    login.wait_for(lambda: up() == 2, 60, "two nodes are scraped")
    login.matrix("start_cluster", *SMALL)
    login.matrix("deploy_applications", "cluster=slurm", *ENGINE)
    login.wait_for(lambda: up() == 4, 60, "the new worker and the front door are scraped")
    login.matrix("remove_workers", "count=1")
    login.wait_for(lambda: up() == 3, 60, "the worker that left isn't scraped any more")
