"""`plan=true`: what would go where, printed; nothing is started, and nothing written but the scripts of a Slurm cluster."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.command import run


@pytest.fixture
def plain(tmp_path: Path) -> dict[str, str]:
    """Whatever Slurm this machine has: nodes are as a machine without one assumes them."""
    return {"SLURM_CONF": "/dev/null", "MATRIX_DIR": str(tmp_path.with_name(f"{tmp_path.name}-matrix"))}


def test_a_plan_is_printed_and_nothing_is_made(tmp_path: Path, plain: dict[str, str]) -> None:
    done = run(tmp_path, "plan=true", "cluster=slurm", "cluster.workers=2", "model=llama405b", **plain)
    assert done.returncode == 0, done.stderr
    scripts, _, placed = done.stdout.partition("\napp ")
    line = placed.splitlines()[1]
    assert "worker-1, worker-2" in line
    assert "2 x (8 GPU, 8 CPU)" in line
    for name in ("head", "workers"):
        kept = Path(plain["MATRIX_DIR"]) / "clusters" / "slurm" / "plan" / f"{name}.sh"
        assert f"# {kept}\n{kept.read_text()}" in scripts
    assert list(tmp_path.iterdir()) == []


def test_what_has_no_room_is_said_and_the_command_fails(tmp_path: Path, plain: dict[str, str]) -> None:
    done = run(tmp_path, "plan=true", "cluster=slurm", "model=llama70b", "engine.replicas=3", **plain)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == (
        "no room for llama70b: replica 3 of 3 needs 4 GPU; worker-1 has 0 of 8 free"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_thousand_nodes_are_planned_in_seconds(tmp_path: Path, plain: dict[str, str]) -> None:
    began = time.monotonic()
    overrides = ("cluster=slurm", "cluster.workers=1000", "model=llama8b", "engine.replicas=8000")
    done = run(tmp_path, "plan=true", *overrides, **plain)
    assert time.monotonic() - began < 5
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["worker-1000", *["8", "of", "8", "GPU,", "8", "of", "64", "CPU"]]


def test_a_server_that_is_there_is_not_placed(tmp_path: Path) -> None:
    done = run(tmp_path, "plan=true", "engine=openai", "engine.api_key_env=null")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Nothing is placed: the model is served by somebody else.\n"
    assert list(tmp_path.iterdir()) == []
