"""What a team's rows add up to."""

from __future__ import annotations

import json
import math
from statistics import fmean, stdev
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrix.data.rows import AgentRow, Call, Entry, RowError, Score
from matrix.pipelines.metrics import summarise
from matrix.pipelines.team_tally import TeamTally
from matrix.spec import Price


def row(index: int = 0, termination: str = "end", *entries: Entry, **fields: Any) -> AgentRow:
    error = fields.pop("error", None)
    status = "error" if error else "ok"
    return AgentRow(
        "a", index, 0, status, {"task": {}}, error=error, termination=termination, history=list(entries), **fields
    )


def asked(prompt: int, completion: int, cached: int | None = None, **fields: Any) -> Call:
    usage: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": completion}
    if cached is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": cached}
    return Call("llm", fields.pop("took_s", 1.0), usage, "http://x/v1", **fields)


def tally(*rows: AgentRow) -> TeamTally:
    found = TeamTally()
    for one in rows:
        found.add(one)
    return found


def test_nothing() -> None:
    assert tally().summary().to_dict({}) == {"terminations": {}, "metrics": {}, "agents": {}}


def test_terminations_the_most_frequent_first() -> None:
    rows = [row(0, "max_turns"), row(1, "agreement"), row(2, "agreement"), row(3, "error", error=RowError("x", "y"))]
    found = tally(*rows).summary().terminations
    assert next(iter(found.items())) == ("agreement", 2)
    assert found == {"agreement": 2, "max_turns": 1, "error": 1}


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
def test_metrics_are_means_with_their_errors(values: list[float]) -> None:
    found = tally(*(row(index, metrics={"x": value}) for index, value in enumerate(values))).summary().metrics["x"]
    assert found["mean"] == pytest.approx(fmean(values), abs=1e-6)
    assert found["count"] == len(values)
    if len(values) == 1:
        assert found["stderr"] is None
    else:
        assert found["stderr"] == pytest.approx(stdev(values) / math.sqrt(len(values)), rel=1e-6, abs=1e-6)


def test_a_metric_is_over_the_rows_that_went_well_and_have_it() -> None:
    failed = row(2, metrics={"x": 9.0}, error=RowError("timeout", "late"))
    found = tally(row(0, metrics={"x": 1.0}), row(1), failed, row(3, metrics={"x": 3.0, "y": 5.0})).summary().metrics
    assert found["x"]["mean"] == 2.0
    assert (found["x"]["count"], found["y"]["count"]) == (2, 1)


def test_what_roles_did() -> None:
    entries = [
        Entry("a", "x", took_s=1.0, calls=[asked(10, 5, 4, took_s=0.5), asked(1, 1, took_s=1.5)]),
        Entry("b", "y", took_s=3.0),
        Entry("a", "z", took_s=3.0, calls=[asked(100, 50, replayed=True, took_s=0.0), Call("tool", 1.0)]),
    ]
    failed = row(1, "error", Entry("a", "", took_s=2.0, calls=[asked(1000, 0)]), error=RowError("x", "y"))
    found = tally(row(0, "end", *entries), failed).summary().to_dict({"a": Price(input_per_million=1e6)})["agents"]
    a, b = found["a"], found["b"]
    assert (a["turns"], a["calls"], a["replayed"]) == (3, 5, 1)
    assert (a["prompt_tokens"], a["cached_prompt_tokens"], a["completion_tokens"]) == (1111, 4, 56)
    assert a["turn_s"]["mean"] == pytest.approx(2.0)
    assert a["call_s"]["mean"] == pytest.approx((0.5 + 1.5 + 1.0 + 1.0) / 4), "what was read back took no time"
    assert (b["turns"], b["calls"], b["call_s"], b.get("cost_usd")) == (1, 0, None, None)
    assert a["cost_usd"] > 1000
    assert list(found) == ["a", "b"]


def test_servers_that_do_not_say_everything() -> None:
    usage: dict[str, Any] = {"prompt_tokens": None, "prompt_tokens_details": None}
    found = tally(row(0, "end", Entry("a", "x", calls=[Call("llm", 1.0, usage)]))).summary().agents["a"]
    assert (found.prompt_tokens, found.cached_prompt_tokens, found.completion_tokens) == (0, 0, 0)


def test_a_summary_of_a_team_is_json_and_has_scores_as_a_pipeline_s() -> None:
    rows = [
        row(0, "end", Entry("a", "x", calls=[asked(2, 1)]), scores={"math": Score([1.0], ["4"])}, metrics={"m": 1.0},
            tokens={"prompt_tokens": 2, "completion_tokens": 1, "cached_prompt_tokens": 0}),
        row(1, "max_turns", scores={"math": Score([0.0], [None])}),
        row(2, "error", error=RowError("timeout", "late")),
    ]  # fmt: skip
    found = summarise(rows, ["math"]).to_dict()
    assert json.loads(json.dumps(found)) == found
    assert found["rows"] == {"total": 3, "ok": 2, "error": 1, "errors": {"timeout": 1}, "retries": 0}
    assert found["scores"]["math"]["accuracy"] == 0.5
    assert found["scores"]["math"]["unparsed"] == 1
    assert found["terminations"] == {"end": 1, "max_turns": 1, "error": 1}
    assert found["tokens"]["prompt"] == 2
    assert found["metrics"]["m"]["count"] == 1
