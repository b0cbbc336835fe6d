"""A command of the terminal that runs inside a cluster of jobs: what is handed over, and what is left behind."""

from __future__ import annotations

import gc
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from matrix import cli
from matrix.cluster import launch
from matrix.cluster.folder import ClusterFolder
from matrix.cluster.inside import INSIDE
from matrix.compose import compose_spec
from matrix.errors import ClusterError, ConfigError
from matrix.run import remote
from matrix.run.remote import elsewhere, run_there, switch_off, with_run_dir, with_sweep_dir
from matrix.spec import LocalCluster, RunSpec, SlurmCluster
from tests.cluster.clusters import Said, command, new, spec
from tests.command import against

SERVER = against("http://127.0.0.1:9/v1")
SLURM = (*SERVER, "cluster=slurm", "cluster.executor=local")


def composed(*overrides: str) -> RunSpec:
    return compose_spec([*SLURM, *overrides])


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("MATRIX_DIR", str(tmp_path))
    monkeypatch.delenv(INSIDE, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "clusters"


def test_only_a_cluster_of_jobs_is_elsewhere_and_only_from_outside(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    assert elsewhere(LocalCluster(kind="local")) is None
    there = spec(root)
    assert elsewhere(there) == there
    monkeypatch.setenv(INSIDE, str(root))
    assert elsewhere(there) is None


def test_the_run_dir_of_a_run_is_settled(tmp_path: Path) -> None:
    arguments, folder = with_run_dir(composed("name=x"), ["name=x", "run.detach=true", "seed=1"])
    assert arguments == ["name=x", "seed=1", f"run.dir='{folder}'"]
    assert Path(folder).parent == tmp_path / "outputs" / "x"
    assert not Path(folder).exists()
    again, same = with_run_dir(composed(f"run.dir={folder}"), [f"run.dir={folder}"])
    assert (again, same) == ([f"run.dir='{folder}'"], folder)
    # Relative to where it was typed.
    assert with_run_dir(composed("run.dir=mine"), ["run.dir=mine"])[1] == str(tmp_path / "mine")


@pytest.mark.parametrize("name", ["a,b", "with space", "x=1", "it's", "(one)", "a{b}", "ünï", "#5 & more", "[1]"])
def test_a_run_dir_arrives_whatever_is_in_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    arguments, folder = with_run_dir(composed(), [])
    assert str(composed(*arguments).run.dir) == folder
    assert name in folder


def test_the_folder_of_a_sweep_is_settled(tmp_path: Path) -> None:
    given = ["-m", "seed=1,2", "run.detach=true"]
    arguments, folder = with_sweep_dir(composed(), given)
    assert arguments == ["-m", "seed=1,2", f"hydra.sweep.dir='{folder}'"]
    assert Path(folder).parent == tmp_path / "outputs" / "sweeps"
    again, same = with_sweep_dir(composed(), [*given, "hydra.sweep.dir='sub dir'"])
    assert same == str(tmp_path / "sub dir")
    assert again[-1] == f"hydra.sweep.dir='{same}'"
    assert [argument.partition("=")[0] for argument in again].count("hydra.sweep.dir") == 1


def test_a_folder_of_a_sweep_that_would_be_another_each_time_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"hydra\.sweep\.dir=.*another folder whenever the sweep goes on"):
        with_sweep_dir(composed(), ["-m", "seed=1,2", "hydra.sweep.dir=x/${now:%H}"])


class There:
    """Stands for the cluster: what was started, handed over and followed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: ClusterFolder) -> None:
        self.folder, self.done = folder, []
        self.code = 0
        steps: dict[tuple[object, str], Callable[..., Any]] = {
            (launch, "start"): self._start,
            (launch, "find_up"): lambda _cluster, _live, hand_over: hand_over(self._did("find")),
            (launch, "run_here"): lambda *_: self._did("run here"),
            (launch, "end"): lambda *_: self._did("end"),
            (remote, "submit"): self._submit,
            (remote, "follow"): self._follow,
        }
        for (module, name), step in steps.items():
            monkeypatch.setattr(module, name, step)

    def _did(self, what: str, how: object = None) -> ClusterFolder:
        self.done.append((what, how))
        return self.folder

    def _start(
        self, _cluster: SlurmCluster, _live: object, *, hand_over: Callable[..., None], take_back: object, **how: bool
    ) -> None:
        assert callable(take_back)
        hand_over(self._did("start", how))

    def _submit(self, _folder: ClusterFolder, argv: list[str], run_dir: str) -> str:
        self.done.append(("submit", (argv, run_dir)))
        command(self.folder, "k")
        return "k"

    def _follow(self, *_: object) -> int:
        self.done.append(("follow", None))
        command(self.folder, "k", "failed", exit_code=self.code)
        return self.code

    @property
    def steps(self) -> list[str]:
        return [what for what, _ in self.done]


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch, root: Path) -> There:
    return There(monkeypatch, new(root, for_runs=True))


def test_a_run_starts_its_cluster_and_ends_it(there: There, root: Path) -> None:
    there.code = 3
    assert run_there(spec(root), ["run", "a=b"], "/runs/1") == 3
    assert there.done == [
        ("start", {"for_runs": True, "grows": False, "wait": True}),
        ("submit", (["run", "a=b"], "/runs/1")),
        ("follow", None),
        ("end", None),
    ]


def test_a_run_that_is_left_alone(there: There, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_there(spec(root), ["run"], detach=True) == 0
    assert there.steps == ["start", "submit"]
    assert "matrix attach k" in capsys.readouterr().err


def test_one_that_makes_the_cluster_stay_and_one_that_needs_it_up(there: There, root: Path) -> None:
    there.folder.change(for_runs=False)
    run_there(spec(root), ["deploy_applications"], stays=True)
    assert there.done[0] == ("start", {"for_runs": False, "grows": False, "wait": True})
    assert there.steps == ["start", "submit", "follow"]
    there.done.clear()
    run_there(spec(root), ["deploy_applications"], start=False)
    assert there.steps == ["find", "submit", "follow"]


def test_a_head_in_this_process(there: There, root: Path) -> None:
    run_there(spec(root, executor="debug"), ["run"], detach=True)
    assert there.steps == ["start", "submit", "run here", "follow", "end"]


def test_a_cluster_that_others_use_is_not_switched_off(there: There) -> None:
    command(there.folder, "k", "succeeded", exit_code=0)
    command(there.folder, "other", "running")
    switch_off(there.folder, Said())
    assert there.steps == []
    command(there.folder, "other", "failed", exit_code=1)
    switch_off(there.folder, Said())
    assert there.steps == ["end"]
    there.folder.retire()
    switch_off(there.folder, Said())
    assert there.steps == ["end"]


class Typed:
    """`python run.py ...`, with what it hands over."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.handed: list[tuple[SlurmCluster, list[str], str, dict[str, Any]]] = []
        self.fails: Exception | None = None

    def __call__(self, *arguments: str) -> int:
        self._monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.run()
        return int(ended.value.code or 0)

    def run_there(self, cluster: SlurmCluster, argv: list[str], folder: str, **more: Any) -> int:
        self.handed.append((cluster, argv, folder, more))
        if self.fails:
            raise self.fails
        return 3


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Typed:
    found = Typed(monkeypatch)
    monkeypatch.setattr(remote, "run_there", found.run_there)
    for name in ("HYDRA_FULL_ERROR", "PYDANTIC_DISABLE_PLUGINS"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    yield found
    gc.enable()


def test_a_run_is_handed_over_as_it_was_typed(typed: Typed, tmp_path: Path) -> None:
    assert typed(*SLURM, "name=x", "cluster.workers=2") == 3
    ((cluster, argv, folder, more),) = typed.handed
    assert (cluster.workers, cluster.executor) == (2, "local")
    assert argv == ["run", *SLURM, "name=x", "cluster.workers=2", f"run.dir='{folder}'"]
    assert Path(folder).parent == tmp_path / "outputs" / "x"
    assert more == {"detach": False}
    # Inside the same command line means the same run.
    assert str(compose_spec(argv[1:]).run.dir) == folder


def test_a_run_that_is_to_be_left_alone_does_not_leave_itself_alone_inside(typed: Typed) -> None:
    typed(*SLURM, "run.detach=true")
    ((_, argv, _, more),) = typed.handed
    assert more == {"detach": True}
    assert "detach" not in shlex.join(argv)


def test_a_run_with_a_setting_of_hydra_is_handed_over_once(typed: Typed) -> None:
    assert typed(*SLURM, "hydra.verbose=false") == 3
    ((_, argv, folder, _),) = typed.handed
    assert argv == ["run", *SLURM, "hydra.verbose=false", f"run.dir='{folder}'"]


def test_a_sweep_is_handed_over_as_a_whole(typed: Typed, tmp_path: Path) -> None:
    assert typed(*SLURM, "-m", "seed=1,2", "run.detach=true") == 3
    ((_, argv, folder, more),) = typed.handed
    assert argv == ["run", *SLURM, "-m", "seed=1,2", f"hydra.sweep.dir='{folder}'"]
    assert Path(folder).parent == tmp_path / "outputs" / "sweeps"
    assert more == {"detach": True}


def test_nothing_is_handed_over_that_is_wrong(typed: Typed, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(*SLURM, "-m", "seed=1,2", "hydra.sweep.dir=x/${now:%H}") == 2
    assert typed(*SLURM, "sampling.temperature=hot") == 2
    assert typed(*SLURM, "-m", "seed=1,x") == 2
    assert typed.handed == []
    assert "another folder whenever the sweep goes on" in capsys.readouterr().err


def test_a_plan_hands_nothing_over(typed: Typed, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(*SLURM, "plan=true", "dataset.limit=1") == 0
    assert typed(*SLURM, "plan=true", "dataset.limit=1", "-m", "seed=1,2") == 0
    assert typed.handed == []
    assert not root.exists()
    assert capsys.readouterr().out != ""


def test_a_cluster_that_does_not_come_up_is_said_in_a_line(typed: Typed, capsys: pytest.CaptureFixture[str]) -> None:
    typed.fails = ClusterError("the head failed: no Ray here")
    assert typed(*SLURM) == 1
    assert capsys.readouterr().err == "the head failed: no Ray here\n"
