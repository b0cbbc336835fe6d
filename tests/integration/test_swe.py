"""agents=swe from the command line: a repository with a failing test, repaired in a real container by a scripted model."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from matrix.commands import swe_predictions
from tests.command import only_run_dir, rows, run, summary

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap"),
]

SETUP = """
set -e
mkdir /testbed
cd /testbed
git init -q
git config user.name me
git config user.email me@localhost
printf 'def double(x):\\n    return x + 2\\n' > numbers_.py
printf 'from numbers_ import double\\n\\nassert double(3) == 6\\n' > test_numbers.py
git add -A
git commit -q -m first
"""
TEST = ["python3", "-B", "test_numbers.py"]
SCRIPT = [
    "What is there?\n```bash\nls && cat numbers_.py && python3 test_numbers.py\n```",
    "It adds where it should multiply.",
    "Two at once:\n```bash\npwd\n```\n```bash\nls\n```",
    (
        "Mend it, and say so.\n```bash\nsed -i 's/x + 2/x * 2/' numbers_.py && echo 'It doubles.' > NOTES "
        "&& python3 -B test_numbers.py && git add NOTES && git commit -q -m notes\n```"
    ),
    "```bash\necho COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT\n```",
]


def test_a_scripted_model_repairs_a_repository(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        json.dumps({"instance_id": "me__numbers-1", "problem_statement": "double(3) should be 6", "setup": SETUP})
    )
    (tmp_path / "says.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in SCRIPT))
    simulated = ("engine=simulated", "engine.outputs=says.jsonl", "engine.cpus=0.1", "model=api", "model.name=scripted")
    data = ("dataset=jsonl", "dataset.path=rows.jsonl", "dataset.id_key=instance_id")
    more = ("agents.limits.turns=20", "sampling.max_tokens=512", "agents.roles.coder.sampling.max_tokens=512")
    done = run(tmp_path, "agents=swe", "tracker=none", *simulated, *data, *more)
    assert done.returncode == 0, done.stderr
    run_dir = only_run_dir(tmp_path / "outputs")
    (row,) = rows(run_dir)
    assert (row["status"], row["termination"]) == ("ok", "submitted")
    assert row["metrics"] == {"submitted": 1, "commands": 3, "malformed": 2}
    said = [(turn["agent"], turn["text"]) for turn in row["history"]]
    assert "AssertionError" in said[2][1]
    assert [text.splitlines()[0] for agent, text in said if agent == "reviewer" and text] == [
        "Your answer has 0 blocks of shell commands. Give exactly one:",
        "Your answer has 2 blocks of shell commands. Give exactly one:",
    ]
    assert summary(run_dir)["terminations"] == {"submitted": 1}

    assert swe_predictions.main([str(run_dir)]) == 0
    (told,) = json.loads((run_dir / "predictions.json").read_text()).values()
    assert (told["instance_id"], told["model_name_or_path"]) == ("me__numbers-1", "scripted")
    fresh = tmp_path / "fresh"
    subprocess.run(["bash", "-c", SETUP.replace("/testbed", str(fresh))], check=True)
    assert subprocess.run(TEST, cwd=fresh, capture_output=True, check=False).returncode == 1
    subprocess.run(["git", "apply"], cwd=fresh, input=told["model_patch"].encode(), check=True)
    assert subprocess.run(TEST, cwd=fresh, check=False).returncode == 0
    assert (fresh / "NOTES").read_text() == "It doubles.\n", "what was committed is part of the patch"
    changed = subprocess.run(["git", "status", "--short"], cwd=fresh, capture_output=True, text=True, check=True).stdout
    assert sorted(line.split()[-1] for line in changed.splitlines()) == [
        "NOTES",
        "numbers_.py",
    ]
    assert "__pycache__" not in told["model_patch"], "its tests compiled it there"
