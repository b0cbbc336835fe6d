"""The folder of a cluster: one incarnation after another, changed by one command at a time, private."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from pathlib import Path

import pytest

from matrix.cluster import folder as folders
from matrix.cluster.folder import ClusterFolder, find, find_all, locked, root_of
from matrix.cluster.states import Node, WorkerJob
from matrix.errors import ClusterError
from tests.cluster.clusters import command, head, new, worker
from tests.command import environment

ADD = """
import sys
from pathlib import Path
from matrix.cluster.folder import ClusterFolder
from matrix.cluster.states import WorkerJob
folder, name = ClusterFolder(Path(sys.argv[1])), sys.argv[2]
for number in range(20):
    with folder.lock():
        folder.add_workers([WorkerJob(f"{name}_{number}")])
    with folder.lock():
        folder.dismiss([f"{name}_{number}"] if number % 2 else [])
"""


def test_a_new_cluster_of_an_id_gets_a_new_folder(tmp_path: Path) -> None:
    first = new(tmp_path, id="a")
    assert first.is_current
    second = new(tmp_path, id="a")
    assert second.path.parent == first.path.parent == tmp_path / "a"
    assert (first.is_current, second.is_current) == (False, True)
    assert find(tmp_path / "a") == second
    assert second.spec().root == str(tmp_path)
    assert first.token.read_text() != second.token.read_text()
    other = new(tmp_path, id="b")
    assert find_all(tmp_path) == [second, other]


def test_no_cluster_is_found_where_there_is_none(tmp_path: Path) -> None:
    assert find(tmp_path / "a") is None
    assert find_all(tmp_path / "nowhere") == []
    (tmp_path / "file").touch()
    # As a cluster of this machine has it.
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "cluster.json").write_text("{}")
    assert find_all(tmp_path) == []
    found = new(tmp_path)
    (found.path / "cluster.json").unlink()
    assert find(found.home) is None


def test_the_root_is_the_users_own_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MATRIX_DIR", str(tmp_path))
    assert root_of(None) == tmp_path / "clusters"
    monkeypatch.delenv("MATRIX_DIR")
    assert root_of(None) == Path.home() / ".matrix" / "clusters"
    assert root_of("~/x") == Path.home() / "x"


def test_changes_of_several_processes_at_once_are_all_kept(tmp_path: Path) -> None:
    folder = new(tmp_path)
    started = [
        subprocess.Popen([sys.executable, "-c", ADD, str(folder.path), str(number)], env=environment())
        for number in range(4)
    ]
    assert [process.wait(timeout=60) for process in started] == [0] * 4
    workers = folder.cluster().workers
    assert sorted(one.job_id for one in workers) == sorted(f"{a}_{b}" for a in range(4) for b in range(20))
    assert {one.job_id for one in workers if not one.wanted} == {f"{a}_{b}" for a in range(4) for b in range(1, 20, 2)}
    # No half-written file is left.
    assert not list(folder.path.glob(".*"))


def test_who_waits_for_the_lock_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = new(tmp_path)
    monkeypatch.setattr(folders, "_SAY_LOCKED_S", 0.1)
    monkeypatch.setattr(folders, "_LOCK_S", 0.5)
    said: list[str] = []
    with (folder.home / "lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ClusterError, match=r"another command has held .*slurm/lock"), folder.lock(said.append):
            pass
    assert said == ["Another command changes the cluster slurm; waiting for it ..."]
    with folder.lock(said.append):
        assert len(said) == 1


def test_a_root_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ClusterError, match=r"cluster\.root=.*file: Not a directory"), locked(tmp_path / "file" / "id"):
        pass


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"text"', "{}", '{"workers": 1}', '{"workers": []}'])
def test_a_damaged_state_is_said_in_words(tmp_path: Path, text: str) -> None:
    folder = new(tmp_path)
    (folder.path / "cluster.json").write_text(text)
    with pytest.raises(ClusterError, match=r"cluster\.json can't be read .*another version of matrix"):
        folder.cluster()
    folder.head_file.write_text(text)
    with pytest.raises(ClusterError, match=r"head\.json can't be read"):
        folder.head()


def test_what_a_newer_version_adds_is_passed_over_and_what_it_takes_away_is_said(tmp_path: Path) -> None:
    folder = new(tmp_path)
    worker(folder, "1")
    head(folder)
    for path in (folder.path / "cluster.json", folder.head_file, folder.node_file("1")):
        path.write_text(json.dumps({**json.loads(path.read_text()), "new": 1}))
    assert folder.cluster().id == "slurm"
    assert folder.nodes().keys() == {"1"}
    folder.change(spec={**folder.cluster().spec, "new": 1})
    with pytest.raises(ClusterError, match="another version of matrix"):
        folder.spec()


def test_only_its_user_can_read_it(tmp_path: Path) -> None:
    folder = new(tmp_path / "deep" / "root")
    for path in (folder.home, folder.path, folder.path / "commands", folder.path / "nodes", folder.jobs, folder.logs):
        assert path.stat().st_mode & 0o777 == 0o700, path
    assert folder.token.stat().st_mode & 0o777 == 0o600


def test_a_cluster_that_is_no_more_keeps_its_logs_but_no_secret(tmp_path: Path) -> None:
    folder = new(tmp_path)
    command(folder, "k")
    log = folder.command_file("k", "log")
    for path in (folder.key, folder.command_file("k", "env"), log):
        path.touch()
    folder.retire()
    assert find(folder.home) is None
    assert not any(path.exists() for path in (folder.token, folder.key, folder.command_file("k", "env")))
    assert log.exists()
    assert folder.cluster().id == "slurm"


def test_the_end_of_an_old_cluster_leaves_the_new_one_alone(tmp_path: Path) -> None:
    old, now = new(tmp_path), new(tmp_path)
    old.retire()
    assert now.is_current
    assert now.token.exists()


def test_the_last_five_dead_ones_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = iter(f"2030010{day}-000000" for day in range(1, 9))
    monkeypatch.setattr(folders.time, "strftime", lambda _: next(names))
    (tmp_path / "slurm" / "plan").mkdir(parents=True)
    made: list[ClusterFolder] = [new(tmp_path) for _ in range(8)]
    assert [folder.path.exists() for folder in made] == [False] * 2 + [True] * 6
    assert made[-1].is_current
    assert (tmp_path / "slurm" / "plan").exists()


def test_commands_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    folder = new(tmp_path)
    command(folder, "b", submitted=1.0)
    command(folder, "a", submitted=2.0)
    assert [one.key for one in folder.commands()] == ["b", "a"]


def test_the_front_door_is_what_the_observer_says(tmp_path: Path) -> None:
    folder = new(tmp_path)
    assert folder.front_door() is None
    folder.ray.write_text('{"front_door": "http://10.0.0.1:1"}')
    assert folder.front_door() == "http://10.0.0.1:1"


def test_a_node_that_says_nothing_is_not_fresh(tmp_path: Path) -> None:
    folder = new(tmp_path)
    assert folder.head() is None
    head(folder)
    found = folder.head()
    assert isinstance(found, Node)
    assert found.is_fresh
    head(folder, ago=40)
    found = folder.head()
    assert found is not None
    assert not found.is_fresh


def test_many_workers_share_a_spec_in_the_file(tmp_path: Path) -> None:
    folder = new(tmp_path)
    plain = folder.cluster().spec
    other = {**plain, "workers": 7}
    workers = [WorkerJob(str(number), spec=other if number == 500 else plain) for number in range(1000)]
    folder.add_workers(workers)
    assert list(folder.cluster().workers) == workers
    assert (folder.path / "cluster.json").stat().st_size < 250_000
