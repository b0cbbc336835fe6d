"""Benchmarks of programs on real Ray: the right answers get 100 %, broken ones 0 %."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.command import LOCAL, ROOT, rows, run, summary
from tests.fake_engine import FakeEngine

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

BROKEN = "```python\nimport os\nprint('passed')\nos._exit(0)\n```"


def solutions(name: str) -> dict[str, str]:
    """The right answer by what a prompt begins its task with."""
    found = [json.loads(line) for line in (ROOT / f"matrix/data/samples/{name}.jsonl").read_text().splitlines()]
    return {row.get("text") or row["prompt"].strip(): row.get("code") or row["canonical_solution"] for row in found}


@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_right_and_broken_answers(tmp_path: Path, name: str) -> None:
    right = solutions(name)

    def answer(body: dict[str, Any]) -> str:
        asked = body["messages"][-1]["content"]
        (code,) = (code for task, code in right.items() if task in asked)
        return f"Here it is:\n\n```python\n{code}\n```\nDone." if body["model"] == "right" else BROKEN

    with FakeEngine.in_thread(answer=answer) as engine:
        done = run(
            tmp_path, "-m", f"pipeline={name}", f"dataset={name}_sample", "model.name=right,broken", "sampling.n=4",
            "pipeline.scorers.0.pass_at=[1,3]", "hydra.sweep.dir=sweep", "cluster.cpus=2", "engine=openai",
            f"engine.base_url={engine.url}", "engine.api_key_env=null", *LOCAL, timeout_s=250,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    good, bad = (summary(tmp_path / "sweep" / job)["scores"]["code"] for job in "01")
    assert (good["accuracy"], good["pass@1"], good["pass@3"], good["statuses"]) == (1, 1, 1, {"ok": 40})
    assert (bad["accuracy"], bad["pass@1"], bad["pass@3"], bad["statuses"]) == (0, 0, 0, {"error": 40})
    assert "maj@4" not in good
    score = rows(tmp_path / "sweep/0")[0]["scores"]["code"]
    assert score == {"values": [1.0] * 4, "answers": ["passed"] * 4, "statuses": ["ok"] * 4}
    assert "code statuses" in done.stdout
