from __future__ import annotations

import json
import math
import tracemalloc
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from statistics import fmean, quantiles, stdev
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrix.data.rows import Response, Row, RowError, Score
from matrix.pipelines.metrics import Summariser, summarise
from matrix.pipelines.summary import ScorerSummary, Summary
from matrix.pipelines.tally import pass_at_k


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
    scores = {"s": Score(list(values), list(answers))}
    return Row("a name may repeat", index(id_), 0, "ok", {}, response=Response(**fields), scores=scores)


def failed(id_: str, type_: str = "timeout", attempts: int = 1) -> Row:
    return Row("a name may repeat", index(id_), 0, "error", {}, error=RowError(type_, "too late", attempts))


def index(id_: str) -> int:
    return int(id_) if id_.isdigit() else ord(id_)


def in_order(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows by index; those of the same one get trials from 0 on."""
    trials: Counter[int] = Counter()
    for row in sorted(rows, key=lambda row: row.index):
        yield replace(row, trial=trials[row.index])
        trials[row.index] += 1


def sum_up(*rows: Row, labels: Sequence[str] = ()) -> Summary:
    return summarise(in_order(rows), labels)


def scored(*rows: Row) -> ScorerSummary:
    return sum_up(*rows, labels=["s"]).scorers["s"]


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


def test_the_k_that_are_asked_for() -> None:
    rows = list(in_order([ok("a", [1] + [0] * 9), ok("b", [0] * 10), ok("c", [1, 1])]))
    summary = summarise(rows, ["s"], {"s": [10, 5, 1, 100]}).scorers["s"]
    # Over the questions that have so many samples; of 100 there are none.
    assert summary.pass_at == {1: pytest.approx((0.1 + 0 + 1) / 3), 5: pytest.approx(0.25), 10: pytest.approx(0.5)}
    assert list(summary.to_dict())[:6] == ["accuracy", "stderr", "avg@10", "pass@1", "pass@5", "pass@10"]


def test_what_was_run_is_counted_by_status_and_does_not_vote() -> None:
    rows = [ok("a", [1, 0], ["passed", "timeout"]), ok("b", [0, 0], ["timeout", None])]
    for row, statuses in zip(rows, (["ok", "timeout"], ["timeout", "no_code"]), strict=True):
        row.scores["s"] = replace(row.scores["s"], statuses=statuses)
    summary = scored(*rows)
    assert summary.statuses == {"timeout": 2, "ok": 1, "no_code": 1}
    assert (summary.maj_at_k, summary.unparsed, summary.accuracy) == (None, 1, 0.25)
    assert "maj@2" not in summary.to_dict()
    assert summary.to_dict()["statuses"] == summary.statuses
    assert "statuses" not in scored(ok("a", [1])).to_dict()


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
    summary = sum_up(*rows)
    assert (summary.rows, summary.ok) == (6, 3)
    assert list(summary.errors.items()) == [("http_400", 2), ("timeout", 1)]
    assert (summary.prompt_tokens, summary.completion_tokens) == (27, 10)
    assert (summary.truncated, summary.empty) == (1, 3)


@given(st.lists(st.floats(0, 1000), min_size=2, max_size=50))
def test_latency_percentiles(seconds: list[float]) -> None:
    latency = sum_up(*(ok(str(number), [1], latency_s=value) for number, value in enumerate(seconds))).latency
    assert latency is not None
    expected = quantiles(seconds, n=100, method="inclusive")
    assert latency.mean == pytest.approx(fmean(seconds))
    assert (latency.p50, latency.p99) == pytest.approx((expected[49], expected[98]), rel=0.01, abs=1e-8)


def test_equal_latencies_are_exact() -> None:
    latency = sum_up(ok("a", [1], latency_s=0.3), ok("b", [1], latency_s=0.3)).latency
    assert latency is not None
    assert (latency.mean, latency.p50, latency.p99) == (0.3, 0.3, 0.3)


def test_what_requests_cost() -> None:
    cached = {"prompt_tokens": 40, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 32}}
    unknown = {"prompt_tokens": 40, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": None}}
    rows = [
        ok("a", [1], usage=cached, attempts=3),
        ok("b", [1], usage=unknown),
        ok("c", [1], usage={"prompt_tokens_details": None}),
        failed("d", attempts=6),
        failed("e", "data", attempts=0),
    ]
    summary = sum_up(*rows)
    assert (summary.prompt_tokens, summary.cached_prompt_tokens, summary.completion_tokens) == (80, 32, 10)
    assert summary.retries == 2 + 5


# --- rows as they come ------------------------------------------------------------------------------------------------


def test_sums_can_be_asked_for_in_between() -> None:
    rows = list(in_order([ok("a", [1, 0]), failed("b"), ok("b", [1, 1]), ok("a", [0, 0], latency_s=3.0), failed("c")]))
    summariser = Summariser(["s"])
    for count, row in enumerate(rows, start=1):
        summariser.add(row)
        assert summariser.summary() == summariser.summary() == summarise(rows[:count], ["s"])


@pytest.mark.parametrize(("index_", "trial"), [(5, 1), (5, 0), (4, 9)])
def test_rows_out_of_order_and_rows_that_come_twice_are_refused(index_: int, trial: int) -> None:
    summariser = Summariser(["s"])
    summariser.add(replace(ok("5", [1]), trial=1))
    with pytest.raises(ValueError, match=r"in order of \(index, trial\), each once"):
        summariser.add(replace(ok(str(index_), [1]), trial=trial))
    summariser.add(replace(ok("5", [1]), trial=2))
    assert summariser.summary().scorers["s"].questions == 1


def test_a_name_that_repeats_is_not_one_question() -> None:
    assert scored(ok("1", [1]), ok("2", [0])).questions == 2


@given(st.lists(st.lists(st.none() | st.lists(st.integers(0, 2), min_size=1, max_size=3), max_size=4), max_size=12))
def test_running_sums_say_what_all_rows_at_once_say(questions: list[list[list[int] | None]]) -> None:
    """Against the formulas, written down for rows that are all there; None is a row with an error."""
    rows = [
        failed(str(number)) if half_points is None else ok(str(number), [points / 2 for points in half_points])
        for number, trials in enumerate(questions)
        for half_points in trials
    ]
    found = scored(*rows)
    samples = [[points / 2 for trial in trials for points in trial or []] for trials in questions]
    answered = [one for one in samples if one]
    k = max(map(len, answered), default=0)
    assert (found.questions, found.samples, found.k) == (len(answered), sum(map(len, answered)), k)
    assert found.incomplete == sum(len(one) < k for one in answered)
    if answered:
        assert found.accuracy == pytest.approx(fmean(map(fmean, answered)))
    if len(answered) > 1:
        assert found.stderr == pytest.approx(stdev(map(fmean, answered)) / math.sqrt(len(answered)), abs=1e-12)
    for draws, value in found.pass_at.items():
        enough = [pass_at_k(len(one), one.count(1), draws) for one in answered if len(one) >= draws]
        assert value == pytest.approx(fmean(enough))
    if any(None in trials for trials in questions):
        per_row = max((len(trial) for trials in questions for trial in trials if trial), default=1)
        lost = [sum(trial is None for trial in trials) * per_row for trials in questions]
        all_ = [sum(one) / (len(one) + gone) for one, gone in zip(samples, lost, strict=True) if one or gone]
        assert found.accuracy_errors_as_wrong == pytest.approx(fmean(all_))


def test_memory_is_the_same_for_any_number_of_rows() -> None:
    def rows(count: int) -> Iterator[Row]:
        for number in range(count):
            yield (
                failed(str(number))
                if number % 50 == 0
                else ok(str(number), [number % 3 == 0, 1], [str(number), str(-number)], latency_s=1 + number % 997)
            )

    def kept(count: int) -> int:
        tracemalloc.start()
        summariser = Summariser(["s"])
        for row in rows(count):
            summariser.add(row)
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert summariser.summary().rows == count
        return size

    assert kept(20_000) < kept(2_000) + 20_000


def test_to_dict_is_json_with_the_usual_names() -> None:
    summary = sum_up(ok("a", [1, 0, 1]), ok("b", [0, 0, 1]), failed("c", attempts=3), labels=["s"]).to_dict()
    assert json.loads(json.dumps(summary)) == summary
    assert summary["rows"] == {"total": 3, "ok": 2, "error": 1, "errors": {"timeout": 1}, "retries": 2}
    assert summary["tokens"] == {"prompt": 20, "completion": 10, "cached_prompt": 0}
    scores = summary["scores"]["s"]
    assert scores["accuracy"] == scores["avg@3"] == pytest.approx(0.5)
    assert {"pass@1", "pass@2", "pass@3", "maj@3", "stderr", "accuracy_errors_as_wrong", "k"} <= set(scores)
