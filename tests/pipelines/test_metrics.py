from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import combinations
from statistics import fmean, quantiles, stdev
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrix.data.rows import Response, Row, RowError, Score
from matrix.pipelines.metrics import ScorerSummary, Summariser, pass_at_k, summarise


def ok(id_: str, values: Sequence[float], answers: Sequence[str | None] | None = None, **response: Any) -> Row:
    answers = ["right" if value else "wrong" for value in values] if answers is None else list(answers)
    fields = {
        "text": ["x"] * len(values),
        "finish_reason": ["stop"] * len(values),
        "usage": {"prompt_tokens": 10, "completion_tokens": 5},
        "reasoning_content": None,
        "tool_calls": None,
        "logprobs": None,
        "latency_s": 1.0,
        "endpoint": "e",
        "attempts": 1,
    } | response
    return Row(id_, 0, 0, "ok", {}, response=Response(**fields), scores={"s": Score(list(values), list(answers))})


def failed(id_: str, type_: str = "timeout") -> Row:
    return Row(id_, 0, 0, "error", {}, error=RowError(type_, "too late"))


def scored(*rows: Row) -> ScorerSummary:
    return summarise(rows, ["s"]).scorers["s"]


# --- accuracy and its error bar ---------------------------------------------------------------------------------------


def test_accuracy_is_the_mean_over_questions_whatever_their_samples() -> None:
    summary = scored(ok("a", [1, 1, 1, 1]), ok("b", [0]), ok("c", [0, 1]))
    assert summary.accuracy == pytest.approx((1 + 0 + 0.5) / 3)
    assert summary.stderr == pytest.approx(stdev([1, 0, 0.5]) / math.sqrt(3))
    assert (summary.questions, summary.samples, summary.k, summary.incomplete) == (3, 7, 4, 2)


def test_trials_of_a_question_are_samples_of_one_cluster() -> None:
    one_row_each = scored(ok("a", [1, 0]), ok("b", [1, 1]))
    row_per_trial = scored(ok("a", [1]), ok("b", [1]), ok("a", [0]), ok("b", [1]))
    assert row_per_trial == one_row_each


def test_repeating_every_sample_does_not_shrink_the_error_bar() -> None:
    once = scored(*(ok(str(number), [number % 2]) for number in range(10)))
    often = scored(*(ok(str(number), [number % 2] * 8) for number in range(10)))
    assert often.stderr == once.stderr


def test_a_single_question_has_no_error_bar() -> None:
    assert scored(ok("a", [1, 0])).stderr is None


def test_without_rows_there_are_no_figures() -> None:
    summary = summarise([], ["s"])
    assert summary.latency is None
    scorer = summary.scorers["s"]
    assert (scorer.accuracy, scorer.stderr, scorer.maj_at_k, scorer.pass_at, scorer.k) == (None, None, None, {}, 0)
    assert scorer.unparsed_share is None


def test_errors_stand_apart_and_are_wrong_in_a_figure_of_their_own() -> None:
    summary = scored(ok("a", [1, 1]), failed("a"), ok("b", [1, 1]), failed("c"))
    assert summary.accuracy == 1
    # a: 2 of 4 samples, b: 2 of 2, c: 0 of 2.
    assert summary.accuracy_errors_as_wrong == pytest.approx((0.5 + 1 + 0) / 3)
    assert scored(ok("a", [1])).accuracy_errors_as_wrong is None
    assert scored(failed("a")).accuracy_errors_as_wrong == 0


def test_rows_without_the_scorer_are_counted_as_unscored() -> None:
    row = ok("b", [1])
    row.scores.clear()
    summary = scored(ok("a", [1]), row)
    assert (summary.unscored, summary.questions) == (1, 1)


# --- pass@k -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.data())
def test_pass_at_k_is_the_share_of_draws_with_a_right_sample(samples: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(samples)))
    draws = list(combinations(samples, k))
    assert pass_at_k(len(samples), sum(samples), k) == pytest.approx(sum(map(any, draws)) / len(draws))


@given(st.integers(1, 2000), st.data())
def test_pass_at_k_stays_within_bounds_for_many_samples(n: int, data: st.DataObject) -> None:
    right, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    value = pass_at_k(n, right, k)
    assert right / n - 1e-9 <= value <= 1
    assert (value == 0) == (right == 0)


@pytest.mark.parametrize(
    ("k", "expected"),
    [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (4, [1, 2, 4]), (5, [1, 2, 4, 5]), (8, [1, 2, 4, 8]), (9, [1, 2, 4, 8, 9])],
)
def test_pass_at_powers_of_two_and_the_number_of_samples(k: int, expected: list[int]) -> None:
    assert list(scored(ok("a", [0] * k)).pass_at) == expected


def test_pass_at_k_is_over_the_questions_that_have_k_samples() -> None:
    summary = scored(ok("a", [1, 0, 0, 0]), ok("b", [0, 0]))
    assert summary.pass_at == pytest.approx({1: 0.125, 2: 0.25, 4: 1.0})


def test_a_partial_value_is_not_right() -> None:
    summary = scored(ok("a", [0.9, 0.5]))
    assert summary.accuracy == pytest.approx(0.7)
    assert summary.pass_at == {1: 0, 2: 0}


# --- maj@k ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "answers", "expected"),
    [
        ([1, 1, 0], ["4", "4", "5"], 1),
        ([1, 0, 0], ["4", "5", "5"], 0),
        ([1, 0], ["4", "5"], 1 / 2),
        ([1, 0, 0], ["4", "5", "6"], 1 / 3),
        ([0, 0, 0, 1], [None, None, None, "4"], 1),
        ([0, 0], [None, None], 0),
        ([1, 0], ["4", "4"], 1 / 2),
    ],
)
def test_majority(values: list[float], answers: list[str | None], expected: float) -> None:
    assert scored(ok("a", values, answers)).maj_at_k == pytest.approx(expected)


def test_votes_are_pooled_over_trials_and_averaged_over_questions() -> None:
    rows = [ok("a", [1], ["4"]), ok("a", [0], ["5"]), ok("a", [1], ["4"]), ok("b", [0], ["7"])]
    assert scored(*rows).maj_at_k == pytest.approx(0.5)


def test_unparsed_answers_are_counted() -> None:
    summary = scored(ok("a", [0, 1, 0], [None, "4", None]), ok("b", [0], ["5"]))
    assert (summary.unparsed, summary.unparsed_share) == (2, 0.5)


# --- totals -----------------------------------------------------------------------------------------------------------


def test_totals() -> None:
    calls: list[list[dict[str, Any]]] = [[], [{"id": "call"}]]
    rows = [
        ok("a", [1, 0], text=["", " \n"], finish_reason=["length", "stop"]),
        ok("b", [1, 0], text=["", ""], finish_reason=["stop", "tool_calls"], tool_calls=calls),
        ok("c", [1], usage={"prompt_tokens": 7, "completion_tokens": None}),
        failed("d"),
        failed("e", "http_400"),
        failed("e", "http_400"),
    ]
    summary = summarise(rows, [])
    assert (summary.rows, summary.ok) == (6, 3)
    assert list(summary.errors.items()) == [("http_400", 2), ("timeout", 1)]
    assert (summary.prompt_tokens, summary.completion_tokens) == (27, 10)
    assert (summary.truncated, summary.empty) == (1, 3)


@given(st.lists(st.floats(0, 1000), min_size=2, max_size=50))
def test_latency_percentiles(seconds: list[float]) -> None:
    latency = summarise([ok(str(number), [1], latency_s=value) for number, value in enumerate(seconds)], []).latency
    assert latency is not None
    expected = quantiles(seconds, n=100, method="inclusive")
    assert (latency.mean, latency.p50, latency.p99) == pytest.approx((fmean(seconds), expected[49], expected[98]))


def test_order_of_rows_does_not_matter_and_sums_can_be_asked_for_in_between() -> None:
    rows = [ok("a", [1, 0]), failed("b"), ok("b", [1, 1]), ok("a", [0, 0], latency_s=3.0)]
    summariser = Summariser(["s"])
    for row in rows:
        summariser.add(row)
        summariser.summary()
    assert summariser.summary() == summarise(reversed(rows), ["s"])


def test_to_dict_is_json_with_the_usual_names() -> None:
    summary = summarise([ok("a", [1, 0, 1]), ok("b", [0, 0, 1]), failed("c")], ["s"]).to_dict()
    assert json.loads(json.dumps(summary)) == summary
    assert summary["rows"] == {"total": 3, "ok": 2, "error": 1, "errors": {"timeout": 1}}
    assert summary["tokens"] == {"prompt": 20, "completion": 10}
    scores = summary["scores"]["s"]
    assert scores["accuracy"] == scores["avg@3"] == pytest.approx(0.5)
    assert {"pass@1", "pass@2", "pass@3", "maj@3", "stderr", "accuracy_errors_as_wrong", "k"} <= set(scores)
