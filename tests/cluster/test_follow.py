"""A command inside a cluster, as the terminal that handed it over sees it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from matrix.cluster import follow as following
from matrix.cluster.folder import ClusterFolder
from matrix.cluster.follow import find_command, follow, submit
from matrix.errors import ClusterError
from tests.cluster.clusters import Said, command, head, new
from tests.cluster.fake_jobs import FakeJobs


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, fake_jobs: FakeJobs, tmp_path: Path) -> ClusterFolder:
    monkeypatch.setattr(following, "_ASK_S", -1)
    found = new(tmp_path, executor="slurm")
    found.change(head_job="100")
    fake_jobs.are("RUNNING", "100")
    head(found)
    return found


def write(folder: ClusterFolder, text: bytes) -> None:
    with folder.command_file("k", "log").open("ab") as log:
        log.write(text)


def becomes(folder: ClusterFolder, phase: str, code: int | None = None) -> None:
    replace(following.read(folder, "k"), phase=phase, exit_code=code).write(folder.command_file("k"))  # type: ignore[arg-type]


def interrupt() -> None:
    raise KeyboardInterrupt


def test_what_is_handed_over(monkeypatch: pytest.MonkeyPatch, folder: ClusterFolder, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MY_KEY", "secret")
    key = submit(folder, ["run", "a=b"], "/runs/1")
    found = following.read(folder, key)
    assert (found.phase, found.argv, found.cwd, found.run_dir) == ("waiting", ("run", "a=b"), str(tmp_path), "/runs/1")
    env = folder.command_file(key, "env")
    assert json.loads(env.read_text())["MY_KEY"] == "secret"
    assert env.stat().st_mode & 0o777 == 0o600
    assert "secret" not in folder.command_file(key).read_text()


@pytest.mark.parametrize(("phase", "code"), [("succeeded", 0), ("failed", 3), ("stopped", 130)])
def test_its_output_is_shown_once_and_whole_and_its_exit_code_passed_on(
    folder: ClusterFolder, fake_jobs: FakeJobs, capsysbinary: pytest.CaptureFixture[bytes], phase: str, code: int
) -> None:
    command(folder, "k")
    said = Said()
    long = b"x" * 200_000 + b"\n"
    fake_jobs.then(
        lambda: becomes(folder, "running"),
        # Not at the border of a character, and no text at all.
        lambda: write(folder, b"a\xe2\x82"),
        lambda: write(folder, b"\xac\xff\r\x1b[2K"),
        lambda: write(folder, long),
        lambda: (write(folder, b"last words"), becomes(folder, phase, code)),
    )
    assert follow(folder, "k", said) == code
    assert capsysbinary.readouterr().out == b"a\xe2\x82\xac\xff\r\x1b[2K" + long + b"last words"
    assert said.lines == ["the head starts the command once enough workers have joined (0 so far)"]


def test_one_that_has_ended_long_ago_is_shown_from_its_beginning(
    folder: ClusterFolder, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    command(folder, "k", "failed", exit_code=1)
    write(folder, b"all of it\n")
    assert follow(folder, "k", Said()) == 1
    assert capsysbinary.readouterr().out == b"all of it\n"


def test_ctrl_c_asks_it_to_stop(folder: ClusterFolder, fake_jobs: FakeJobs) -> None:
    command(folder, "k", "running")
    said, stop = Said(), folder.command_file("k", "stop")
    fake_jobs.then(interrupt, lambda: becomes(folder, "stopped", 130) if stop.exists() else None)
    assert follow(folder, "k", said) == 130
    assert "Asked it to stop" in said.text


def test_ctrl_c_takes_back_what_has_not_started(folder: ClusterFolder, fake_jobs: FakeJobs) -> None:
    key = submit(folder, ["run"])
    said = Said()
    fake_jobs.then(interrupt)
    assert follow(folder, key, said) == 130
    assert said.lines[-1] == "\nTaken back before it had started."
    found = following.read(folder, key)
    assert (found.phase, found.exit_code) == ("stopped", 130)
    assert not list(folder.path.glob("commands/*.env"))


def test_what_a_command_waits_for_is_shown(folder: ClusterFolder, fake_jobs: FakeJobs) -> None:
    command(folder, "k")
    said = Said()
    folder.head_file.unlink(missing_ok=True)
    fake_jobs.are("PENDING", "100", reason="Resources")
    fake_jobs.then(lambda: becomes(folder, "succeeded", 0))
    assert follow(folder, "k", said) == 0
    assert said.lines[0] == "head: job 100 PENDING (Resources)"


def test_a_second_ctrl_c_leaves_it_alone(folder: ClusterFolder, fake_jobs: FakeJobs) -> None:
    command(folder, "k", "running")
    said = Said()
    fake_jobs.then(interrupt, interrupt)
    assert follow(folder, "k", said) == 130
    assert said.lines[-1] == "\nIt stops by itself. See it again: matrix attach k"
    assert following.read(folder, "k").phase == "running"
    assert fake_jobs.cancelled == []


def test_a_head_that_goes_and_comes_back_is_said(folder: ClusterFolder, fake_jobs: FakeJobs) -> None:
    command(folder, "k", "running")
    said = Said()
    fake_jobs.then(
        lambda: (becomes(folder, "requeued"), head(folder, "requeued", ago=100), fake_jobs.are("PENDING", "100")),
        lambda: None,
        lambda: (becomes(folder, "running"), head(folder)),
        lambda: becomes(folder, "succeeded", 0),
    )
    assert follow(folder, "k", said) == 0
    assert said.lines == ["The head had to go before the command had ended: it goes on when Slurm starts it again"]


def test_a_head_that_is_gone_loses_its_command(folder: ClusterFolder, fake_jobs: FakeJobs) -> None:
    command(folder, "k", "running", run_dir="/runs/1", starts=1)
    folder.command_file("k", "env").touch()
    (folder.jobs / "100_0_log.out").write_text("the reason\n")
    said = Said()
    fake_jobs.then(lambda: (head(folder, ago=100), fake_jobs.are("NODE_FAIL", "100")), lambda: None)
    assert follow(folder, "k", said) == 1
    assert "The head (job 100) ended before the command did" in said.text
    assert "the reason" in said.text
    assert said.text.endswith("\nIts rows are kept in /runs/1; start it again with that run dir to resume it.")
    found = following.read(folder, "k")
    assert (found.phase, found.exit_code) == ("lost", 1)
    assert not folder.command_file("k", "env").exists()


def test_slurm_that_does_not_answer_loses_nothing(folder: ClusterFolder, fake_jobs: FakeJobs) -> None:
    command(folder, "k", "running")
    said = Said()
    head(folder, ago=100)
    fake_jobs.down = 2
    fake_jobs.then(lambda: None, lambda: None, lambda: becomes(folder, "succeeded", 0))
    assert follow(folder, "k", said) == 0
    assert said.lines == ["The head can't be asked about: squeue: Unable to contact slurm controller"] * 2


def test_one_that_ends_just_when_its_head_does_is_not_lost(
    monkeypatch: pytest.MonkeyPatch, folder: ClusterFolder, fake_jobs: FakeJobs
) -> None:
    command(folder, "k", "running")
    head(folder, ago=100)
    fake_jobs.are("COMPLETED", "100")
    living = following.jobs.living
    monkeypatch.setattr(following.jobs, "living", lambda *a: (becomes(folder, "succeeded", 0), living(*a))[1])
    fake_jobs.then(lambda: None)
    assert follow(folder, "k", Said()) == 0


def test_a_command_is_found_by_its_key_and_by_where_it_writes(
    monkeypatch: pytest.MonkeyPatch, folder: ClusterFolder, tmp_path: Path
) -> None:
    other = new(tmp_path, id="other")
    monkeypatch.chdir(tmp_path)
    command(folder, "k1", run_dir=str(tmp_path / "runs" / "1"))
    command(other, "k2", run_dir=str(tmp_path / "sweep"))
    both = [folder, other]
    assert find_command(both, "k2")[0] == other
    assert find_command(both, "runs/1/")[1].key == "k1"
    assert find_command(both, str(tmp_path / "sweep"))[1].key == "k2"
    assert find_command(both, "sweep/0")[1].key == "k2"
    command(other, "k3", run_dir=str(tmp_path / "runs" / "1"), submitted=1e12)
    assert find_command(both, "runs/1")[1].key == "k3"
    with pytest.raises(ClusterError, match=r"runs/2: no such run \(the last ones: k1, k2, k3\)"):
        find_command(both, "runs/2")
    with pytest.raises(ClusterError, match="none runs inside a cluster"):
        find_command([], "k1")
    with pytest.raises(ClusterError, match="k9: no such command in cluster slurm"):
        following.read(folder, "k9")
