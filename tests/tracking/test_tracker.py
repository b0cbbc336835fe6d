from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from matrix.spec.tracker import NoTracker, WandbTracker
from matrix.tracking import wandb as wandb_module
from matrix.tracking.none import SilentTracker
from matrix.tracking.tracker import check_tracker, make_tracker


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_each_kind_has_its_class() -> None:
    assert isinstance(make_tracker(NoTracker(kind="none")), SilentTracker)
    assert isinstance(make_tracker(WandbTracker(kind="wandb")), wandb_module.WandbTracker)


def test_importing_and_making_trackers_does_not_import_wandb() -> None:
    code = """
import sys
import matrix.tracking.tracker as tracking
from matrix.spec.tracker import NoTracker, WandbTracker
tracking.make_tracker(NoTracker(kind="none"))
spec = WandbTracker(kind="wandb", mode="offline")
tracking.make_tracker(spec).finish({}, 1, None)
assert tracking.check_tracker(spec) == []
print("wandb" in sys.modules, sorted({"ray", "torch"} & set(sys.modules)))
"""
    assert _python(code) == "False []"


def test_none_works_where_wandb_cannot_be_imported(tmp_path: Path) -> None:
    code = f"""
import sys
sys.modules["wandb"] = None
from pathlib import Path
from matrix.data.rows import Row
from matrix.spec.tracker import NoTracker
from matrix.tracking.tracker import JobInfo, check_tracker, make_tracker
spec = NoTracker(kind="none")
assert check_tracker(spec) == []
tracker = make_tracker(spec)
tracker.start(JobInfo("n", "i", Path({str(tmp_path)!r}), None, "qa", {{}}, (), "run.py"))
tracker.sample(Row("a", 0, 0, "ok", {{}}))
tracker.log({{"rows_done": 1}}, 1)
tracker.finish({{"rows": {{"ok": 1}}}}, 0, None)
print(tracker.notice())
"""
    assert _python(code) == "None"
    assert list(tmp_path.iterdir()) == []


def test_wandb_that_is_not_installed_is_a_problem_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    [problem] = check_tracker(WandbTracker(kind="wandb"))
    assert str(problem) == (
        "tracker.kind=wandb: wandb is not installed (pip install 'matrix-llm[wandb]', or tracker=none)"
    )


def test_what_wandb_would_refuse_later_is_a_problem_now() -> None:
    spec = WandbTracker(kind="wandb", mode="offline", project="team/qa", tags=["ok", "x" * 65])
    assert [(problem.key, problem.message) for problem in check_tracker(spec)] == [
        ("tracker.project", "W&B allows no / in it"),
        ("tracker.tags.1", "a W&B tag has 1 to 64 characters"),
    ]
