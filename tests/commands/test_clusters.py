"""Which cluster a command means, and what the commands about clusters of jobs do with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from matrix.api import Cli
from matrix.cluster import launch
from matrix.cluster.inside import INSIDE
from matrix.commands import attach, clusters, remove_workers, start, status, stop
from matrix.errors import AppError, ClusterError, ConfigError
from tests.cluster.clusters import command, head, new, worker


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("MATRIX_DIR", str(tmp_path))
    monkeypatch.delenv(INSIDE, raising=False)
    return tmp_path / "clusters"


def own(**given: str) -> dict[str, str]:
    return {"cluster.id": given.get("id", ""), "cluster.root": given.get("root", "")}


def test_the_only_one_is_meant(root: Path) -> None:
    assert clusters.named(own()) is None
    folder = new(root)
    assert clusters.named(own()) == folder
    new(root, id="other").retire()
    assert clusters.named(own()) == folder


def test_of_several_one_has_to_be_named(root: Path) -> None:
    new(root, id="a")
    other = new(root, id="b")
    with pytest.raises(ClusterError, match=r"there are several clusters: give cluster\.id=a or b"):
        clusters.named(own())
    assert clusters.named(own(id="b")) == other


def test_one_that_is_not_there(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"cluster\.id=x: no such cluster \(there is none below .*clusters\)"):
        clusters.named(own(id="x"))
    new(root, id="gpus")
    with pytest.raises(ClusterError, match=r"cluster\.id=gpu: .*did you mean gpus\?"):
        clusters.named(own(id="gpu"))
    elsewhere = new(tmp_path / "elsewhere")
    assert clusters.named(own(root=str(tmp_path / "elsewhere"))) == elsewhere


def test_inside_a_cluster_it_is_that_one(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    new(root, id="a")
    folder = new(root, id="b")
    monkeypatch.setenv(INSIDE, str(folder.path))
    assert clusters.named(own()) == folder


def test_status_of_a_cluster_of_jobs(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = new(root)
    head(folder, "starting")
    assert status.main([]) == 0
    assert "cluster slurm: starting" in capsys.readouterr().out
    head(folder)
    assert status.main(["cluster.id=slurm"]) == 0
    out = capsys.readouterr().out
    assert "front door: none" in out
    assert "no apps" in out
    assert status.main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out)["phase"] == "up"


def test_the_key_of_a_cluster_of_jobs(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = new(root)
    with pytest.raises(AppError, match="no app was ever deployed"):
        status.main(["--key"])
    folder.key.write_text("abc")
    assert status.main(["--key"]) == 0
    assert capsys.readouterr().out == "abc\n"


def test_status_without_a_cluster() -> None:
    with pytest.raises(ClusterError, match="there is no cluster on this machine"):
        status.main([])


@pytest.mark.parametrize("main", [status.main, stop.main])
def test_one_of_this_machine_beside_one_of_jobs(monkeypatch: pytest.MonkeyPatch, root: Path, main: object) -> None:
    new(root)
    for module in (status, stop):
        monkeypatch.setattr(module, "find_kept", object)
    with pytest.raises(ClusterError, match=r"several clusters: give cluster\.id=local or cluster\.id=slurm"):
        main([])  # type: ignore[operator]


def test_a_stop_without_a_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    assert stop.main([]) == 1
    assert "there is no cluster" in capsys.readouterr().err


def test_a_stop_clears_everything_away(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = new(root)
    assert stop.main(["cluster.id=slurm"]) == 0
    assert not folder.is_current
    assert not folder.token.exists()
    assert "Stopped the cluster slurm" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "count: give either count=N or jobs=ID"),
        (["count=1", "jobs=2"], "count=1: give either"),
        (["count=0"], "count=0: should be a number from 1 on"),
        (["count=some"], "count=some: should be a number"),
        (["cuont=1"], r"cuont=1: no such argument \(did you mean count\?\)"),
    ],
)
def test_which_workers_to_remove(root: Path, arguments: list[str], message: str) -> None:
    new(root)
    with pytest.raises(ConfigError, match=message):
        remove_workers.main(arguments)


def test_workers_are_removed(monkeypatch: pytest.MonkeyPatch, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    removed: list[list[str]] = []
    monkeypatch.setattr(launch, "remove_workers", lambda _folder, ids, _live: removed.append(ids))
    with pytest.raises(ClusterError, match="there is no cluster of jobs: matrix start_cluster"):
        remove_workers.main(["count=1"])
    folder = new(root)
    for job in ("10", "11", "12"):
        worker(folder, job)
    worker(folder, "13", wanted=False)
    assert remove_workers.main(["count=2"]) == 0
    assert remove_workers.main(["jobs=10,12"]) == 0
    assert removed == [["12", "11"], ["10", "12"]]
    assert "Removed 12, 11\n" in capsys.readouterr().err
    for job in ("13", "1o"):
        with pytest.raises(ClusterError, match=f"jobs={job}: no worker of this cluster"):
            remove_workers.main([f"jobs={job}"])


def test_a_run_is_seen_again(root: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    folder = new(root, id="a")
    command(folder, "k", "failed", exit_code=3, run_dir="/runs/1")
    folder.command_file("k", "log").write_text("all of it\n")
    for name in ("k", "/runs/1"):
        assert attach.main([name]) == 3
        shown = capsysbinary.readouterr()
        assert shown.out == b"all of it\n"
        assert b"k has ended: failed" in shown.err
    assert attach.main(["k", "cluster.id=a"]) == 3
    with pytest.raises(ClusterError, match=r"k9: no such run \(the last ones: k\)"):
        attach.main(["k9"])
    for wrong in ([], ["k", "k2"]):
        with pytest.raises(ConfigError, match="give one run"):
            attach.main(wrong)


def test_a_run_is_seen_again_after_the_end_of_its_cluster(
    root: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    folder = new(root)
    command(folder, "k", "succeeded", exit_code=0)
    folder.command_file("k", "log").write_text("all of it\n")
    folder.retire()
    for arguments in (["k"], ["k", "cluster.id=slurm"]):
        assert attach.main(arguments) == 0
        assert capsysbinary.readouterr().out == b"all of it\n"


def test_a_plan_prints_the_scripts_and_starts_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start.main(["plan=true", "cluster=slurm", "cluster.workers=3", "cluster.slurm.args.constraint=h100"]) == 0
    out = capsys.readouterr().out
    assert out.count("#SBATCH --constraint=h100") == 1
    assert "#SBATCH --array=0-2" in out
    assert not (root / "slurm" / "current").exists()
    assert start.main(["plan=true"]) == 0
    assert "Nothing is submitted" in capsys.readouterr().out


def test_a_start_says_whether_it_waited(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    waited: list[bool] = []
    monkeypatch.setattr(Cli, "start_cluster", lambda _self, _overrides, *, wait, live: waited.append(wait))
    assert start.main(["cluster=slurm", "wait=false"]) == 0
    assert start.main(["cluster=slurm"]) == 0
    assert waited == [False, True]
    assert capsys.readouterr().err.splitlines() == [
        "Submitted: matrix status shows it",
        "The cluster is up: matrix status shows it",
    ]
