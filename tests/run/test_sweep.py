"""A sweep: each job in its own run dir, none lost to another, the exit code tells."""

from __future__ import annotations

import json
from pathlib import Path

from tests.command import against, rows, run, summary
from tests.fake_engine import FakeEngine, Fault


def hot_fails(body: dict[str, object]) -> Fault | None:
    return Fault.http(400, "too hot") if body["temperature"] == 1 else None


def test_one_failing_job_does_not_lose_the_others(tmp_path: Path) -> None:
    with FakeEngine.in_thread(fail=hot_fails) as engine:
        done = run(tmp_path, *against(engine.url), "-m", "sampling.temperature=0,1,0.5", "dataset.limit=4")
        assert done.returncode == 1
        (sweep,) = [file.parent for file in (tmp_path / "outputs").rglob("multirun.yaml")]
        assert [summary(sweep / str(job))["rows"]["ok"] for job in range(3)] == [4, 0, 4]
        assert {row["request"]["temperature"] for row in rows(sweep / "2")} == {0.5}
        assert "sweep" in done.stdout
        asked = len(engine.requests)
        again = run(
            tmp_path,
            *against(engine.url),
            "-m",
            "sampling.temperature=0,1,0.5",
            "dataset.limit=4",
            f"hydra.sweep.dir={sweep}",
        )
        assert again.returncode == 1
        assert len(engine.requests) == asked
    ids = [json.loads((sweep / str(job) / "env.json").read_text())["run_id"] for job in range(3)]
    assert len(set(ids)) == 3


def test_a_sweep_with_a_bad_job_starts_none(tmp_path: Path) -> None:
    with FakeEngine.in_thread() as engine:
        done = run(tmp_path, *against(engine.url), "-m", "sampling.temperature=0,hot", "trials=1,0")
        assert engine.requests == []
    assert done.returncode == 2
    assert "none of its jobs was started" in done.stderr
    assert "sampling.temperature=hot" in done.stderr
    assert "trials=0" in done.stderr
    assert not (tmp_path / "outputs").exists()


def test_a_job_that_fails_before_its_first_row_leaves_the_others_alone(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text('{"question": "a", "answer": "a"}\n')
    bad.write_text('{"question": "a", "answer": "a"}\n{broken\n')
    with FakeEngine.in_thread() as engine:
        done = run(
            tmp_path,
            *against(engine.url),
            "dataset=jsonl",
            "dataset.on_bad_row=stop",
            "-m",
            f"dataset.path={bad},{good}",
        )
    assert done.returncode == 1
    assert "bad.jsonl:2" in done.stderr
    (sweep,) = [file.parent for file in (tmp_path / "outputs").rglob("multirun.yaml")]
    assert summary(sweep / "1")["rows"]["ok"] == 1
    assert not (sweep / "0" / "summary.json").exists()
