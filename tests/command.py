"""Run `python run.py` as a user does, for tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
LOCAL = ("tracker=none", "workload.progress_every_s=0.2")


def environment(**more: str) -> dict[str, str]:
    """The environment without what could change an outcome."""
    ours = ("RAY_", "WANDB_", "HYDRA_", "PYTHONDONTWRITEBYTECODE")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


def command(*arguments: str) -> list[str]:
    """The command line."""
    return [sys.executable, str(ROOT / "run.py"), *arguments]


def run(cwd: Path, *arguments: str, timeout_s: float = 300, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        command(*arguments),
        cwd=cwd,
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def against(url: str) -> tuple[str, ...]:
    """Overrides for a server that is already there."""
    return ("engine=openai", f"engine.base_url={url}", "engine.api_key_env=null", *LOCAL)


def only_run_dir(outputs: Path) -> Path:
    """The one run dir below a folder."""
    (spec,) = outputs.rglob("spec.yaml")
    return spec.parent


def rows(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of a finished run."""
    return [json.loads(line) for line in (run_dir / "rows.jsonl").read_text().splitlines()]


def summary(run_dir: Path) -> dict[str, Any]:
    """The summary of a finished run."""
    found: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return found
