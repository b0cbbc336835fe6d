"""The teams that ship, with the default model: real Ray and vLLM on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command import LOCAL, rows, run, summary
from tests.integration.family import Family

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

TEAMS = ("coral", "debate", "natural_reasoning", "tau2")


def test_a_sweep_over_all_teams_with_the_default_model(tmp_path: Path) -> None:
    """It loads the model once; a model of this size can't do the tasks, but every row comes to a proper end."""
    with Family() as family:
        done = run(
            tmp_path, "-m", *LOCAL, f"agents={','.join(TEAMS)}", "dataset.limit=2", "agents.limits.turns=6",
            "hydra.sweep.dir=sweep", timeout_s=800,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert family.left(within_s=20) == []
    assert done.stderr.count("Loading model smollm2 into vLLM on the CPU: done") == 1
    for job, team in enumerate(TEAMS):
        run_dir = tmp_path / "sweep" / str(job)
        found = rows(run_dir)
        assert [row["status"] for row in found] == ["ok", "ok"], found
        assert all(row["termination"] for row in found)
        called = [call for row in found for entry in row["history"] for call in entry["calls"]]
        asked = [call for call in called if call["name"] == "llm"]
        assert asked, team
        assert all(call["usage"]["completion_tokens"] > 0 for call in asked)
        totals = summary(run_dir)
        assert totals["tokens"]["completion"] == sum(call["usage"]["completion_tokens"] for call in asked)
        assert sum(totals["terminations"].values()) == 2
        assert not (run_dir / "steps").exists()
