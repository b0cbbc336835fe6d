"""What keeps a workload in bounds: budget, watchdog, retries of errors, the format of all rows."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from matrix.compose import compose_spec
from matrix.data.parts import decode_row
from matrix.run.budget import Budget
from matrix.run.progress import Counts
from matrix.spec import Price
from tests.command import against, only_run_dir, rows, run, summary
from tests.fake_engine import Body, FakeEngine, Fault, echo

PRICED = ("model.price.input_per_million=1000", "model.price.output_per_million=10000")


def questions(folder: Path, count: int) -> tuple[str, ...]:
    """A data set of its own: row number i asks for `row i.`"""
    path = folder / "questions.jsonl"
    path.write_text("".join(f'{{"question": "row {index}.", "answer": "x"}}\n' for index in range(count)))
    return ("pipeline=sample_qa", "dataset=jsonl", f"dataset.path={path}")


def asks_for(index: int, body: Body) -> bool:
    return f"row {index}." in str(body["messages"][-1]["content"])


def test_a_price_counts_cached_prompts_apart() -> None:
    price = Price(input_per_million=10, cached_input_per_million=1, output_per_million=100)
    assert price.usd(1_000_000, 400_000, 10_000) == pytest.approx(6 + 0.4 + 1)
    assert Price(input_per_million=10).usd(1_000_000, 400_000, 10_000) == pytest.approx(10)
    assert not Price().is_known
    assert Price(output_per_million=0).is_known


def test_the_cost_is_in_summary_and_metrics(tmp_path: Path) -> None:
    with FakeEngine.in_thread() as engine:
        done = run(tmp_path, *against(engine.url), *questions(tmp_path, 5), *PRICED)
    assert done.returncode == 0, done.stderr
    run_dir = only_run_dir(tmp_path / "outputs")
    found = summary(run_dir)
    expected = (found["tokens"]["prompt"] * 1000 + found["tokens"]["completion"] * 10000) / 1e6
    assert found["cost_usd"] == pytest.approx(expected)
    assert expected > 0
    last = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["cost_usd"] == pytest.approx(expected)
    assert "USD" in done.stdout


def test_a_budget_stops_cleanly_and_a_higher_one_goes_on(tmp_path: Path) -> None:
    arguments = (*questions(tmp_path, 60), *PRICED, "run.dir=here", "workload.concurrency=2")
    with FakeEngine.in_thread(latency_s=0.01) as engine:
        one = run(tmp_path, *against(engine.url), *arguments, "dataset.limit=1", "run.dir=one")
        assert one.returncode == 0, one.stderr
        each = summary(tmp_path / "one")["cost_usd"]
        first_asked = len(engine.requests)
        budget = f"workload.budget_usd={each * 20}"
        done = run(tmp_path, *against(engine.url), *arguments, budget)
        asked = len(engine.requests) - first_asked
        assert done.returncode == 3, done.stderr
        assert "workload.budget_usd" in done.stderr
        found = summary(tmp_path / "here")
        assert found["stopped"] == "budget"
        # The costs of rows differ a little; what is in flight when it is used up is waited for.
        assert found["rows"] == {**found["rows"], "total": asked, "ok": asked, "error": 0}
        assert 17 <= asked <= 22
        assert found["cost_usd"] == pytest.approx(each * 20, rel=0.15)

        done = run(tmp_path, *against(engine.url), *arguments, f"workload.budget_usd={found['cost_usd'] * 0.9}")
        assert done.returncode == 3
        assert len(engine.requests) == first_asked + asked, "what earlier starts cost counts"

        done = run(tmp_path, *against(engine.url), *arguments, "workload.budget_usd=1000")
        assert done.returncode == 0, done.stderr
        assert len(engine.requests) == first_asked + 60, "nothing is paid for twice"
    assert summary(tmp_path / "here")["stopped"] is None
    assert [row["index"] for row in rows(tmp_path / "here")] == list(range(60))


def test_a_budget_without_a_price_is_refused(tmp_path: Path) -> None:
    done = run(tmp_path, *against("http://127.0.0.1:9/v1"), "workload.budget_usd=5")
    assert done.returncode == 2
    assert "workload.budget_usd=5" in done.stderr
    assert "model.price.input_per_million" in done.stderr


def test_what_stalls_is_named_and_becomes_error_rows(tmp_path: Path) -> None:
    def fail(body: Body) -> Fault | None:
        return Fault.hang() if asks_for(3, body) or asks_for(5, body) else None

    limits = ("workload.stall_warn_s=0.6", "workload.stall_limit_s=2")
    with FakeEngine.in_thread(fail=fail) as engine:
        done = run(tmp_path, *against(engine.url), *questions(tmp_path, 10), *limits)
        assert f"row 3/0 for 1 s, with {engine.url}" in done.stderr
    assert done.returncode == 0, done.stderr
    found = rows(only_run_dir(tmp_path / "outputs"))
    assert [row["index"] for row in found] == list(range(10))
    stalled = [row for row in found if row["error"]]
    assert [(row["index"], row["error"]["type"]) for row in stalled] == [(3, "stalled"), (5, "stalled")]
    assert "workload.stall_limit_s" in stalled[0]["error"]["message"]


def test_a_workload_that_goes_on_is_left_alone(tmp_path: Path) -> None:
    """One request is slower than both limits, but rows go on finishing."""
    limits = ("workload.stall_warn_s=0.7", "workload.stall_limit_s=0.7", "workload.concurrency=2")

    def latency(body: Body) -> float:
        return 2.0 if asks_for(0, body) else 0.2

    with FakeEngine.in_thread(latency_s=latency) as engine:
        done = run(tmp_path, *against(engine.url), *questions(tmp_path, 12), *limits)
    assert done.returncode == 0, done.stderr
    assert {row["status"] for row in rows(only_run_dir(tmp_path / "outputs"))} == {"ok"}
    assert "No row finished" not in done.stderr


def test_retry_errors_asks_for_those_rows_only(tmp_path: Path) -> None:
    arguments = (*questions(tmp_path, 8), "run.dir=here", "trials=2")

    def fail(body: Body) -> Fault | None:
        broken = asks_for(2, body) or (asks_for(6, body) and body["seed"] == 1)
        return Fault.http(400, "too long") if broken else None

    with FakeEngine.in_thread(fail=fail) as engine:
        assert run(tmp_path, *against(engine.url), *arguments).returncode == 0
    assert summary(tmp_path / "here")["rows"]["error"] == 3
    with FakeEngine.in_thread() as engine:
        assert run(tmp_path, *against(engine.url), *arguments).returncode == 0
        assert not engine.requests, "rows with an error count as finished"
        done = run(tmp_path, *against(engine.url), *arguments, "workload.retry_errors=true")
        assert done.returncode == 0, done.stderr
        asked = Counter((echo(body), body["seed"]) for body in engine.requests)
    assert asked == Counter({("row 2.", 0): 1, ("row 2.", 1): 1, ("row 6.", 1): 1})
    found = rows(tmp_path / "here")
    assert [(row["index"], row["trial"]) for row in found] == [(i, t) for i in range(8) for t in range(2)]
    assert {row["status"] for row in found} == {"ok"}
    assert summary(tmp_path / "here")["resumed_rows"] == 13


def test_all_rows_as_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    with FakeEngine.in_thread() as engine:
        done = run(tmp_path, *against(engine.url), *questions(tmp_path, 5), "run.rows=parquet", "run.dir=here")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "here" / "rows.jsonl").exists()
    table = parquet.read_table(tmp_path / "here" / "rows.parquet").to_pydict()
    assert table["index"] == list(range(5))
    assert [response["text"] for response in table["response"]] == [[f"row {index}."] for index in range(5)]


def test_a_new_price_may_go_on_in_an_old_run_dir(tmp_path: Path) -> None:
    with FakeEngine.in_thread() as engine:
        assert run(tmp_path, *against(engine.url), *questions(tmp_path, 3), "run.dir=here").returncode == 0
        again = run(tmp_path, *against(engine.url), *questions(tmp_path, 3), "run.dir=here", *PRICED)
    assert again.returncode == 0, again.stderr
    assert summary(tmp_path / "here")["cost_usd"] > 0
    line = (tmp_path / "here" / "rows" / "part-driver.jsonl").read_bytes().splitlines(keepends=True)[0]
    assert decode_row(line).status == "ok"


def test_a_budget_that_cannot_be_kept_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec = compose_spec([*against("http://127.0.0.1:9/v1"), *PRICED, "workload.budget_usd=1"])
    budget = Budget(spec, tmp_path)
    for _ in range(2):
        assert not budget.spend(Counts(ok=1), 0)
    assert caplog.text.count("workload.budget_usd can't be kept") == 1


def test_what_an_earlier_start_made_of_the_rows_does_not_go_stale(tmp_path: Path) -> None:
    arguments = (*questions(tmp_path, 3), "run.dir=here")
    with FakeEngine.in_thread() as engine:
        assert run(tmp_path, *against(engine.url), *arguments, "run.rows=parquet").returncode == 0
        assert run(tmp_path, *against(engine.url), *arguments).returncode == 0
    names = sorted(file.name for file in (tmp_path / "here").glob("rows.*"))
    assert names == ["rows.jsonl"]
