"""A run against a server that is already there: the whole life cycle without Ray and vLLM, as a user starts it."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from tests.command import against, command, environment, only_run_dir, rows, run, summary
from tests.fake_engine import FakeEngine, Fault

SAMPLE = "package:matrix.data/samples/questions.jsonl"


def right(body: dict[str, object]) -> str:
    """Paris to everything: right once in a while."""
    return "Paris"


def test_a_run_from_start_to_end(tmp_path: Path) -> None:
    with FakeEngine.in_thread(answer=right) as engine:
        done = run(tmp_path, *against(engine.url), "trials=2", "sampling.n=3", "seed=5")
    assert done.returncode == 0, done.stderr
    run_dir = only_run_dir(tmp_path / "outputs")
    found = rows(run_dir)
    assert [(row["index"], row["trial"]) for row in found] == [(i, t) for i in range(48) for t in range(2)]
    assert {row["status"] for row in found} == {"ok"}
    first = found[0]
    assert first["request"]["model"] == "smollm2"
    assert first["request"]["seed"] == 5
    assert found[1]["request"]["seed"] == 6
    assert first["request"]["temperature"] == 0
    assert first["response"]["text"] == ["Paris"] * 3
    assert first["response"]["endpoint"] == engine.url
    assert first["response"]["attempts"] == 1
    assert len(first["scores"]["contains"]["values"]) == 3
    scores = summary(run_dir)["scores"]["contains"]
    assert scores["questions"] == 48
    assert scores["accuracy"] == pytest.approx(sum(r["scores"]["contains"]["values"][0] for r in found) / 96)
    assert scores["k"] == 6
    assert scores["pass@2"] == scores["accuracy"]
    assert "contains accuracy" in done.stdout
    metrics = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["rows_done"] == 96
    made = json.loads((run_dir / "env.json").read_text())
    assert made["data"]["fingerprint"].startswith("sha256:")
    assert made["packages"]["hydra-core"]
    spec = yaml.safe_load((run_dir / "spec.yaml").read_text())
    assert spec["engine"]["base_url"] == engine.url


def test_errors_are_rows_and_the_exit_code_tells_when_nothing_was_answered(tmp_path: Path) -> None:
    with FakeEngine.in_thread(fail=lambda body: Fault.http(400, "too long")) as engine:
        done = run(tmp_path, *against(engine.url), "dataset.limit=5")
    assert done.returncode == 1
    found = rows(only_run_dir(tmp_path / "outputs"))
    assert [row["error"]["type"] for row in found] == ["http_400"] * 5
    assert "too long" in found[0]["error"]["message"]
    assert found[0]["response"] is None
    assert done.stderr.count("too long") == 1, "the reason is said once, not for every row"


def test_a_row_whose_prompt_cannot_be_rendered_is_an_error_row(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"question": "a", "answer": "a"}\n{"qestion": "b", "answer": "b"}\n')
    with FakeEngine.in_thread() as engine:
        done = run(tmp_path, *against(engine.url), "dataset=jsonl", f"dataset.path={data}", "pipeline=sample_qa")
    assert done.returncode == 0, done.stderr
    good, bad = rows(only_run_dir(tmp_path / "outputs"))
    assert good["status"] == "ok"
    assert bad["error"]["type"] == "data"
    assert "question" in bad["error"]["message"]


def test_a_finished_run_given_again_asks_for_nothing(tmp_path: Path) -> None:
    with FakeEngine.in_thread() as engine:
        assert run(tmp_path, *against(engine.url), "run.dir=here").returncode == 0
        asked = len(engine.requests)
        again = run(tmp_path, *against(engine.url), "run.dir=here")
        assert again.returncode == 0, again.stderr
        assert len(engine.requests) == asked
    assert summary(tmp_path / "here")["resumed_rows"] == 48
    assert len(json.loads((tmp_path / "here" / "env.json").read_text())["earlier"]) == 1


def test_a_changed_spec_is_refused_with_the_keys(tmp_path: Path) -> None:
    with FakeEngine.in_thread() as engine:
        assert run(tmp_path, *against(engine.url), "run.dir=here").returncode == 0
        before = (tmp_path / "here" / "rows.jsonl").read_bytes()
        more = ("run.dir=here", "sampling.temperature=0.5", "trials=2", "workload.concurrency=3")
        done = run(tmp_path, *against(engine.url), *more)
    assert done.returncode == 2
    assert "sampling.temperature=0.5: the run dir was made with 0.0" in done.stderr
    assert "trials=2: the run dir was made with 1" in done.stderr
    assert "concurrency" not in done.stderr
    assert (tmp_path / "here" / "rows.jsonl").read_bytes() == before


def test_changed_data_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"question": "a", "answer": "a"}\n')
    options = ("dataset=jsonl", f"dataset.path={data}", "run.dir=here")
    with FakeEngine.in_thread() as engine:
        assert run(tmp_path, *against(engine.url), *options).returncode == 0
        data.write_text('{"question": "other", "answer": "a"}\n')
        done = run(tmp_path, *against(engine.url), *options)
    assert done.returncode == 2
    assert "content" in done.stderr


def test_a_folder_that_is_no_run_dir_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with FakeEngine.in_thread() as engine:
        done = run(tmp_path, *against(engine.url), "run.dir=mine")
    assert done.returncode != 0
    assert "no run dir" in done.stderr
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_cleanly_and_says_how_to_resume(tmp_path: Path, number: signal.Signals) -> None:
    with FakeEngine.in_thread(latency_s=0.2) as engine:
        arguments = (*against(engine.url), "workload.concurrency=4")
        process = subprocess.Popen(
            command(*arguments),
            cwd=tmp_path,
            env=environment(),
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        while len(engine.requests) < 10:
            time.sleep(0.02)
        process.send_signal(number)
        begun = time.monotonic()
        _, said = process.communicate(timeout=30)
        assert time.monotonic() - begun < 5
        assert process.returncode == 128 + number
        run_dir = only_run_dir(tmp_path / "outputs")
        kept = (run_dir / "rows" / "part-driver.jsonl").read_text().splitlines()
        assert 4 <= len(kept) < 48
        resume = said.strip().splitlines()[-1].strip()
        assert resume.startswith("python ")
        assert f"run.dir={run_dir.relative_to(tmp_path)}" in resume
        asked = len(engine.requests)
        again = run(tmp_path, *against(engine.url), "workload.concurrency=4", f"run.dir={run_dir}")
        assert again.returncode == 0, again.stderr
        assert len(engine.requests) - asked == 48 - len(kept)
    assert len(rows(run_dir)) == 48


def test_kill_9_and_resume_give_every_row_once(tmp_path: Path) -> None:
    with FakeEngine.in_thread(latency_s=0.05) as engine:
        arguments = (*against(engine.url), "workload.concurrency=8", "run.dir=here", "trials=4")
        for pause in (0.05, 0.2, 0.35):
            seen = len(engine.requests)
            process = subprocess.Popen(
                command(*arguments), cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE
            )
            while len(engine.requests) == seen:
                time.sleep(0.01)
            time.sleep(pause)
            process.kill()
            process.communicate()
        done = run(tmp_path, *arguments)
        assert done.returncode == 0, done.stderr
        found = rows(tmp_path / "here")
        assert sorted((row["id"], row["trial"]) for row in found) == sorted(
            {(row["id"], row["trial"]) for row in found}
        )
        assert len(found) == 48 * 4
        # What was in flight when a driver died is asked for again, nothing else: 3 times 8 at most.
        assert 48 * 4 <= len(engine.requests) <= 48 * 4 + 3 * 8


def test_two_runs_in_one_run_dir_are_refused(tmp_path: Path) -> None:
    with FakeEngine.in_thread(latency_s=4) as engine:
        arguments = (*against(engine.url), "run.dir=here")
        first = subprocess.Popen(
            command(*arguments), cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE
        )
        while not engine.requests:
            time.sleep(0.02)
        second = run(tmp_path, *arguments)
        first.communicate(timeout=60)
    assert first.returncode == 0
    assert second.returncode == 1
    assert str(first.pid) in second.stderr


def test_secrets_stay_out_of_everything_that_is_written(tmp_path: Path) -> None:
    with FakeEngine.in_thread(api_key="sk-very-secret") as engine:
        done = run(
            tmp_path, "engine=openai", f"engine.base_url={engine.url}", "engine.api_key_env=MY_KEY", "tracker=wandb",
            "tracker.mode=offline", "sampling.extra.api_key=sk-other-secret", "dataset.limit=3",
            MY_KEY="sk-very-secret",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert engine.headers[0]["Authorization"] == "Bearer sk-very-secret"
    for file in (tmp_path / "outputs").rglob("*"):
        # The rows hold the request as it was sent; a key that a user puts into the body is the user's own.
        if file.is_file() and "rows" not in str(file):
            assert b"very-secret" not in file.read_bytes(), file
            if file.suffix != ".wandb":
                assert b"other-secret" not in file.read_bytes(), file


def test_wrong_key_is_an_error_row_that_says_so(tmp_path: Path) -> None:
    with FakeEngine.in_thread(api_key="right") as engine:
        done = run(
            tmp_path, "engine=openai", f"engine.base_url={engine.url}", "engine.api_key_env=MY_KEY", "tracker=none",
            "dataset.limit=2", MY_KEY="wrong",
        )  # fmt: skip
    assert done.returncode == 1
    assert rows(only_run_dir(tmp_path / "outputs"))[0]["error"]["type"] == "http_401"


def test_gsm8k_and_math_rows_are_scored(tmp_path: Path) -> None:
    gsm8k = tmp_path / "gsm8k.jsonl"
    gsm8k.write_text(json.dumps({"question": "2+2?", "answer": "It is 4.\n#### 4"}) + "\n")
    math500 = tmp_path / "math500.jsonl"
    math500.write_text(json.dumps({"problem": "1/2+1/2?", "answer": "\\frac{2}{2}", "unique_id": "m/1"}) + "\n")
    with FakeEngine.in_thread(answer=lambda body: "So #### 4" if "2+2" in str(body) else "It is \\boxed{1}") as engine:
        for pipeline, data in (("gsm8k", gsm8k), ("math500", math500)):
            done = run(
                tmp_path,
                *against(engine.url),
                f"pipeline={pipeline}",
                f"dataset.path={data}",
                f"run.dir={pipeline}",
                "trials=2",
            )
            assert done.returncode == 0, done.stderr
    assert summary(tmp_path / "gsm8k")["scores"]["number"]["accuracy"] == 1
    assert summary(tmp_path / "math500")["scores"]["math"]["maj@2"] == 1
    assert rows(tmp_path / "math500")[0]["id"] == "m/1"


def test_a_run_dir_that_cannot_be_made_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with FakeEngine.in_thread() as engine:
        done = run(tmp_path, *against(engine.url), "run.root=file")
    assert done.returncode == 1
    assert "run.root" in done.stderr
    assert "Traceback" not in done.stderr
