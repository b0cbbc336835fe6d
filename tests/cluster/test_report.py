"""What is told of a cluster."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from matrix.cluster.folder import ClusterFolder
from matrix.cluster.report import describe
from matrix.commands.jobs_table import show_jobs
from tests.cluster.clusters import command, head, new, node, worker
from tests.cluster.fake_jobs import FakeJobs


@pytest.fixture
def folder(fake_jobs: FakeJobs, tmp_path: Path) -> ClusterFolder:
    found = new(tmp_path, executor="slurm")
    found.change(head_job="1")
    fake_jobs.are("RUNNING", "1")
    return found


def test_a_cluster_that_is_up(folder: ClusterFolder, fake_jobs: FakeJobs) -> None:
    head(folder, dashboard_port=8265, monitoring={"grafana": 3000})
    worker(folder, "2", partition="gpu")
    worker(folder, "3", None)
    fake_jobs.are("RUNNING", "2")
    fake_jobs.are("PENDING", "3", reason="Resources")
    command(folder, "k", "running", run_dir="/runs/1")
    seen = {"time": time.time(), "nodes": [{"name": "n"}], "apps": [], "front_door": "http://10.0.0.1:2"}
    folder.ray.write_text(json.dumps(seen))
    found = describe(folder)
    assert (found["id"], found["phase"], found["trouble"]) == ("slurm", "up", [])
    assert (found["head"]["job"], found["head"]["state"], found["head"]["host"]) == ("1", "RUNNING", "h1")
    assert (found["head"]["dashboard_port"], found["head"]["monitoring"]) == (8265, {"grafana": 3000})
    up, waits = found["workers"]
    assert (up["job"], up["state"], up["partition"], up["on"][0]["phase"]) == ("2", "RUNNING", "gpu", "up")
    assert (waits["state"], waits["reason"], waits["on"]) == ("PENDING", "Resources", [])
    assert [one["key"] for one in found["commands"]] == ["k"]
    assert (found["nodes"], found["front_door"]) == ([{"name": "n"}], "http://10.0.0.1:2")
    # As JSON it is what programs read.
    assert json.loads(json.dumps(found)).keys() == found.keys()


@pytest.mark.parametrize(
    ("phase", "ago", "shown"),
    [
        ("starting", 0, "starting"),
        ("draining", 0, "draining"),
        ("requeued", 100, "requeued"),
        ("failed", 100, "failed"),
        ("ended", 100, "ended"),
        ("up", 100, "not heard of"),
        ("starting", 100, "not heard of"),
    ],
)
def test_phases(folder: ClusterFolder, phase: str, ago: float, shown: str) -> None:
    head(folder, phase, ago=ago)
    worker(folder, "2", phase, ago=ago)
    found = describe(folder)
    assert found["phase"] == shown
    assert found["head"]["phase"] == shown
    assert found["workers"][0]["on"][0]["phase"] == shown


def test_a_head_that_waits_and_a_cluster_that_is_stopped(folder: ClusterFolder, fake_jobs: FakeJobs) -> None:
    fake_jobs.are("PENDING", "1")
    assert describe(folder)["phase"] == "waiting"
    fake_jobs.known.clear()
    assert describe(folder)["phase"] == "starting"
    head(folder)
    folder.change(stopping=True)
    assert describe(folder)["phase"] == "stopping"


def test_slurm_that_does_not_answer_is_a_line_of_it(folder: ClusterFolder, fake_jobs: FakeJobs) -> None:
    head(folder)
    worker(folder, "2")
    fake_jobs.down = 1
    found = describe(folder)
    assert found["trouble"] == ["squeue: Unable to contact slurm controller"]
    assert (found["phase"], found["head"]["state"], found["workers"][0]["state"]) == ("up", "unknown", "unknown")


def test_workers_that_were_sent_away_are_told_of_while_they_are_there(folder: ClusterFolder) -> None:
    worker(folder, "2", "draining", wanted=False)
    worker(folder, "3", "ended", wanted=False)
    worker(folder, "4", None, wanted=False)
    assert [one["job"] for one in describe(folder)["workers"]] == ["2"]


def test_all_nodes_of_one_job(folder: ClusterFolder) -> None:
    worker(folder, "2", nodes=2)
    node("2", host="h2").write(folder.node_file("2.1"))
    assert {one["host"] for one in describe(folder)["workers"][0]["on"]} == {"h1", "h2"}


def test_what_ray_said_long_ago_is_not_told(folder: ClusterFolder) -> None:
    folder.ray.write_text(json.dumps({"time": time.time() - 60, "nodes": [1], "apps": [1], "front_door": "x"}))
    found = describe(folder)
    assert (found["nodes"], found["apps"], found["front_door"]) == ([], [], None)
    folder.ray.write_text("{")
    assert describe(folder)["nodes"] == []


def test_the_last_ended_commands_and_all_others(folder: ClusterFolder) -> None:
    command(folder, "old", "running", submitted=1.0)
    for number in range(30):
        command(folder, f"k{number:02}", "succeeded", exit_code=0, submitted=10.0 + number)
    shown = [one["key"] for one in describe(folder)["commands"]]
    assert shown == ["old", *(f"k{number:02}" for number in range(10, 30))]


def test_it_is_printed(folder: ClusterFolder, fake_jobs: FakeJobs, capsys: pytest.CaptureFixture[str]) -> None:
    head(folder, detail="[odd] words", dashboard_port=8265)
    worker(folder, "2", replaces="9")
    worker(folder, "3", None)
    fake_jobs.are("PENDING", "3", reason="Priority")
    command(folder, "k1", "failed", exit_code=3, run_dir="/runs/1")
    command(folder, "k2", argv=("deploy_applications", "a=b"))
    fake_jobs.down = 1
    show_jobs(describe(folder))
    show_jobs(describe(folder))
    out = capsys.readouterr().out
    for text in (
        "cluster slurm: up; head: job 1 RUNNING on h1 (10.0.0.1:6379)", "[odd] words", "squeue: Unable to contact",
        "ssh -N -L 8265:127.0.0.1:8265 h1", "2 (for 9)", "PENDING (Priority)", "failed (3)", "/runs/1",
        "deploy_applications a=b", str(folder.path),
    ):  # fmt: skip
        assert text in out, text


def test_it_is_printed_before_there_is_a_head(
    folder: ClusterFolder, fake_jobs: FakeJobs, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_jobs.are("PENDING", "1", reason="QOSMaxJobsPerUserLimit")
    show_jobs(describe(folder))
    assert "cluster slurm: waiting; head: job 1 PENDING (QOSMaxJobsPerUserLimit)\n" in capsys.readouterr().out
