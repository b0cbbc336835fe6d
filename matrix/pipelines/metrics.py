"""Sums rows up: accuracy with its error bar, pass@k, maj@k, and what the run as a whole took.

Rows come one at a time and are not kept: what stays is some counts and the distinct answers of each question, about
half a kilobyte for a question with one sample.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from matrix.data.rows import Row, Score


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds from sending a request's last try to its complete answer, over the rows with an answer."""

    mean: float
    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class ScorerSummary:
    """What one scorer says of a run.

    A question is a row id; its samples are its answers over all trials. All figures but `accuracy_errors_as_wrong`
    are over the samples that there are.

    Attributes:
        questions: Questions with at least one sample.
        samples: Samples in all.
        k: Samples of a question; the largest number where questions differ, as they do after errors.
        incomplete: Questions with fewer samples than `k`, those without any not counted.
        accuracy: Mean over questions of the mean over their samples, also called avg@k; None without samples.
        stderr: Its standard error, clustered by question: samples of one question are no independent draws (Miller
            2024, "Adding Error Bars to Evals", arXiv:2411.00640). None for fewer than 2 questions.
        accuracy_errors_as_wrong: Accuracy if each sample lost to an error were wrong; None if there are no errors.
        pass_at: pass@k by k, for 1, 2, 4, ... and `k` itself: the chance that one of k samples is right (value 1),
            in the mean over the questions that have k samples.
        maj_at_k: Value of the answer that most samples of a question give, in the mean over questions. Only answers
            that could be read vote; where several lead it is the mean of theirs, where there is none it is 0.
        unparsed: Samples whose answer could not be read.
        unscored: Answered rows that lack this scorer; they count nowhere else.
    """

    questions: int
    samples: int
    k: int
    incomplete: int
    accuracy: float | None
    stderr: float | None
    accuracy_errors_as_wrong: float | None
    pass_at: dict[int, float]
    maj_at_k: float | None
    unparsed: int
    unscored: int

    @property
    def unparsed_share(self) -> float | None:
        """Share of the samples whose answer could not be read; None without samples."""
        return self.unparsed / self.samples if self.samples else None

    def to_dict(self) -> dict[str, Any]:
        """For JSON and trackers, under the usual names: `avg@4`, `pass@2`, `maj@4`."""
        figures: dict[str, Any] = {"accuracy": self.accuracy, "stderr": self.stderr}
        if self.accuracy_errors_as_wrong is not None:
            figures["accuracy_errors_as_wrong"] = self.accuracy_errors_as_wrong
        if self.k:
            figures[f"avg@{self.k}"] = self.accuracy
            figures |= {f"pass@{k}": value for k, value in self.pass_at.items()}
            figures[f"maj@{self.k}"] = self.maj_at_k
        counts = {name: getattr(self, name) for name in ("questions", "samples", "k", "incomplete")}
        unread = {"unparsed": self.unparsed, "unparsed_share": self.unparsed_share, "unscored": self.unscored}
        return figures | counts | unread


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run gave.

    Attributes:
        rows: Rows, with an answer or an error.
        ok: Rows with an answer.
        errors: Rows with an error, by type; most frequent first.
        prompt_tokens: Tokens of the prompts, as the servers counted them.
        completion_tokens: Tokens of the answers, reasoning included.
        truncated: Answers that ended at their token limit (finish_reason `length`).
        empty: Answers without text or tool calls.
        latency: None without answers.
        scorers: By label.
    """

    rows: int
    ok: int
    errors: dict[str, int]
    prompt_tokens: int
    completion_tokens: int
    truncated: int
    empty: int
    latency: Latency | None
    scorers: dict[str, ScorerSummary]

    def to_dict(self) -> dict[str, Any]:
        """For summary.json and trackers: plain, nested dicts."""
        latency = self.latency
        return {
            "rows": {"total": self.rows, "ok": self.ok, "error": self.rows - self.ok, "errors": self.errors},
            "tokens": {"prompt": self.prompt_tokens, "completion": self.completion_tokens},
            "answers": {"truncated": self.truncated, "empty": self.empty},
            "latency_s": {"mean": latency.mean, "p50": latency.p50, "p99": latency.p99} if latency else None,
            "scores": {label: scorer.to_dict() for label, scorer in self.scorers.items()},
        }


class Summariser:
    """Takes rows as they come, in any order, and sums up those so far whenever it is asked."""

    def __init__(self, labels: Sequence[str]) -> None:
        """Starts with no rows; `labels` are the scorers to sum up."""
        self._ok = 0
        self._errors: Counter[str] = Counter()
        self._errors_by_question: Counter[str] = Counter()
        self._prompt_tokens = 0
        self._completion_tokens = 0
        self._truncated = 0
        self._empty = 0
        self._latencies = array("d")
        self._scorers = {label: _ScorerTally() for label in labels}

    def add(self, row: Row) -> None:
        """Counts one row."""
        if row.response is None:
            self._errors[row.error.type if row.error else "unknown"] += 1
            self._errors_by_question[row.id] += 1
            return
        response = row.response
        self._ok += 1
        self._prompt_tokens += response.usage.get("prompt_tokens") or 0
        self._completion_tokens += response.usage.get("completion_tokens") or 0
        self._truncated += response.finish_reason.count("length")
        tool_calls = response.tool_calls or [[]] * len(response.text)
        self._empty += sum(
            not text.strip() and not calls for text, calls in zip(response.text, tool_calls, strict=True)
        )
        self._latencies.append(response.latency_s)
        for label, tally in self._scorers.items():
            tally.add(row.id, row.scores.get(label))

    def summary(self) -> Summary:
        """The sums so far."""
        return Summary(
            rows=self._ok + self._errors.total(),
            ok=self._ok,
            errors=dict(self._errors.most_common()),
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            truncated=self._truncated,
            empty=self._empty,
            latency=_latency(self._latencies),
            scorers={label: tally.summary(self._errors_by_question) for label, tally in self._scorers.items()},
        )


def summarise(rows: Iterable[Row], labels: Sequence[str]) -> Summary:
    """Sums rows up; `labels` are the scorers to sum up."""
    summariser = Summariser(labels)
    for row in rows:
        summariser.add(row)
    return summariser.summary()


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The chance that k samples, drawn without replacement, hold a right one: 1 - C(n - c, k) / C(n, k).

    The unbiased estimator of Chen et al. 2021, "Evaluating Large Language Models Trained on Code", arXiv:2107.03374.

    Args:
        samples: Samples that there are (n); at least `k`.
        right: How many of them are right (c).
        k: Samples that are drawn.
    """
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


class _Question:
    """One question's samples, as far as the figures need them."""

    __slots__ = ("right", "samples", "total", "votes")

    def __init__(self) -> None:
        self.samples = 0
        self.right = 0
        self.total = 0.0
        self.votes: dict[str, tuple[int, float]] = {}
        """By answer: how many samples gave it, and the sum of their values."""

    def add(self, value: float, answer: str | None) -> None:
        self.samples += 1
        self.right += value >= 1
        self.total += value
        if answer is not None:
            count, total = self.votes.get(answer, (0, 0.0))
            self.votes[answer] = (count + 1, total + value)

    @property
    def majority(self) -> float:
        """Value of the answer with the most votes; the mean of those that tie, 0 without votes."""
        most = max((count for count, _ in self.votes.values()), default=0)
        return fmean(total / count for count, total in self.votes.values() if count == most) if most else 0.0


class _ScorerTally:
    """One scorer's samples, by question."""

    def __init__(self) -> None:
        self._questions: dict[str, _Question] = {}
        self._samples_per_row = 1
        self._unparsed = 0
        self._unscored = 0

    def add(self, question_id: str, score: Score | None) -> None:
        if score is None or not score.values:
            self._unscored += 1
            return
        question = self._questions.setdefault(question_id, _Question())
        self._samples_per_row = max(self._samples_per_row, len(score.values))
        self._unparsed += score.answers.count(None)
        for value, answer in zip(score.values, score.answers, strict=True):
            question.add(value, answer)

    def summary(self, errors: Counter[str]) -> ScorerSummary:
        """Sums up; `errors` are the rows with an error by question, each worth as many samples as other rows have."""
        questions = self._questions
        sizes = [question.samples for question in questions.values()]
        k = max(sizes, default=0)
        means = [question.total / question.samples for question in questions.values()]
        return ScorerSummary(
            questions=len(questions),
            samples=sum(sizes),
            k=k,
            incomplete=sum(size < k for size in sizes),
            accuracy=fmean(means) if means else None,
            stderr=stdev(means) / math.sqrt(len(means)) if len(means) > 1 else None,
            accuracy_errors_as_wrong=self._accuracy_errors_as_wrong(errors) if errors else None,
            pass_at={draws: self._pass_at(draws) for draws in _powers_of_two_and(k)},
            maj_at_k=fmean(question.majority for question in questions.values()) if questions else None,
            unparsed=self._unparsed,
            unscored=self._unscored,
        )

    def _pass_at(self, k: int) -> float:
        enough = (question for question in self._questions.values() if question.samples >= k)
        return fmean(pass_at_k(question.samples, question.right, k) for question in enough)

    def _accuracy_errors_as_wrong(self, errors: Counter[str]) -> float:
        lost = {question_id: rows * self._samples_per_row for question_id, rows in errors.items()}
        answered = [
            question.total / (question.samples + lost.pop(question_id, 0))
            for question_id, question in self._questions.items()
        ]
        return fmean([*answered, *(0.0 for _ in lost)])


def _powers_of_two_and(k: int) -> list[int]:
    """1, 2, 4, ... below k, and k; nothing for k = 0."""
    return [*(2**power for power in range(max(k - 1, 0).bit_length())), *([k] if k else [])]


def _latency(seconds: array[float]) -> Latency | None:
    if not seconds:
        return None
    ordered = sorted(seconds)
    return Latency(fmean(ordered), _percentile(ordered, 50), _percentile(ordered, 99))


def _percentile(ordered: Sequence[float], percent: float) -> float:
    """Interpolates linearly between the two values next to it, as NumPy does by default."""
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = math.ceil(place)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
