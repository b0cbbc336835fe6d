from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import matrix
from matrix.tracking.tracker import JobInfo


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine without W&B: no key, no settings, nothing written outside; afterwards no service process is left."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "XDG_")) or name == "NETRC"]:
        monkeypatch.delenv(name)
    for name in ("WANDB_SILENT", "WANDB_ERROR_REPORTING"):  # Set by the tracker; this undoes it.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name in ("home", "tmp", "run"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setenv("PYTHONPATH", str(Path(matrix.__file__).parents[1]))
    monkeypatch.chdir(tmp_path)
    yield tmp_path

    import wandb
    from wandb.sdk.lib import wbauth

    wandb.teardown()
    wbauth.unauthenticate_session(update_settings=False)
    assert not [child for child in psutil.Process().children() if child.name().startswith("wandb")]


@pytest.fixture
def make_job(place: Path) -> Callable[..., JobInfo]:
    def make(run_id: str = "one", **changes: Any) -> JobInfo:
        run_dir = place / "run" / run_id
        run_dir.mkdir(parents=True, exist_ok=True)
        fields: dict[str, Any] = {
            "name": f"qa/{run_id}",
            "run_id": run_id,
            "run_dir": run_dir,
            "sweep_id": "sweep-7",
            "job_type": "qa",
            "config": {"model": {"name": "smollm2"}, "engine": {"env": {"HF_TOKEN": "***"}}},
            "tags": ("smollm2", "qa"),
            "command": "run.py model=smollm2",
        }
        return JobInfo(**(fields | changes))

    return make
