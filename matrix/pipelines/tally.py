"""Running sums behind a summary, none of which grows with the number of rows."""

from __future__ import annotations

import copy
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial

from matrix.data.means import Mean, Spread
from matrix.data.rows import Score
from matrix.pipelines.summary import Latency, ScorerSummary

_BUCKET = math.log(1.02)
"""Width of a bucket of latencies, as a logarithm: the middle of one is 1 % from its ends."""
_SHORTEST_S = 1e-9


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
        leading = [total / count for count, total in self.votes.values() if count == most]
        return sum(leading) / len(leading) if leading else 0.0


@dataclass(slots=True)
class _Questions:
    """Sums of the questions that are over.

    Attributes:
        totals: Sums of the samples' values, by (samples, rows lost to an error). How much a lost row weighs is known at
            the end only.
        accuracy: Mean of the samples of each.
        spread: The same, for the error bar.
        majority: Value of the answer that most of its samples give.
        draws: The k of pass@k, as far as a question has so many samples; None: each question adds those for 1, 2, 4,
            ... and its own number of samples. So k that are no powers of two hear from questions of that size only,
            which is right for the largest, the one that counts.
        passes: pass@k by k.
    """

    draws: tuple[int, ...] | None = None
    totals: defaultdict[tuple[int, int], Mean] = field(default_factory=partial(defaultdict, Mean))
    accuracy: Mean = field(default_factory=Mean)
    spread: Spread = field(default_factory=Spread)
    majority: Mean = field(default_factory=Mean)
    passes: defaultdict[int, Mean] = field(default_factory=partial(defaultdict, Mean))

    def add(self, question: _Question, lost: int) -> None:
        samples = question.samples
        if samples or lost:
            self.totals[samples, lost].add(question.total)
        if samples:
            self.accuracy.add(question.total / samples)
            self.spread.add(question.total / samples)
            self.majority.add(question.majority)
            for k, chance in _passes(samples, question.right, self.draws):
                self.passes[k].add(chance)

    def accuracy_errors_as_wrong(self, samples_per_row: int) -> float:
        values = sum(total.total / (samples + lost * samples_per_row) for (samples, lost), total in self.totals.items())
        return values / sum(total.count for total in self.totals.values())


class ScorerTally:
    """One scorer's samples, by question.

    Args:
        draws: The k of pass@k; None: 1, 2, 4, ... and the number of samples.
    """

    def __init__(self, draws: Sequence[int] | None = None) -> None:
        self._draws = None if draws is None else tuple(sorted(set(draws)))
        self._question = _Question()
        self._over = _Questions(self._draws)
        self._statuses: Counter[str] = Counter()
        self._samples_per_row = 1
        self._unparsed = 0
        self._unscored = 0

    def add(self, score: Score | None) -> None:
        """Count a row of the present question; None if it lacks this scorer."""
        if score is None or not score.values:
            self._unscored += 1
            return
        self._samples_per_row = max(self._samples_per_row, len(score.values))
        self._unparsed += score.answers.count(None)
        self._statuses.update(score.statuses or ())
        for value, answer in zip(score.values, score.answers, strict=True):
            # What came of a program is no answer that others could agree with.
            self._question.add(value, None if score.statuses else answer)

    def end_question(self, lost: int) -> None:
        """Start the next question; `lost` rows of the present one ended in an error."""
        self._over.add(self._question, lost)
        self._question = _Question()

    def summary(self, lost: int, *, errors: bool) -> ScorerSummary:
        """Sums up.

        Args:
            lost: As for `end_question`; the present question may go on after this.
            errors: Whether any row ended in an error. Each counts as many samples as other rows have.
        """
        questions = copy.deepcopy(self._over)
        questions.add(self._question, lost)
        sizes = {shape: total.count for shape, total in questions.totals.items() if shape[0]}
        k = max((samples for samples, _ in sizes), default=0)
        return ScorerSummary(
            questions=questions.accuracy.count,
            samples=sum(samples * count for (samples, _), count in sizes.items()),
            k=k,
            incomplete=sum(count for (samples, _), count in sizes.items() if samples < k),
            accuracy=questions.accuracy.value if k else None,
            stderr=questions.spread.stderr,
            accuracy_errors_as_wrong=questions.accuracy_errors_as_wrong(self._samples_per_row) if errors else None,
            pass_at={draws: questions.passes[draws].value for draws in _up_to(k, self._draws)},
            maj_at_k=questions.majority.value if k and not self._statuses else None,
            unparsed=self._unparsed,
            unscored=self._unscored,
            statuses=dict(self._statuses.most_common()),
        )


class Latencies:
    """Latencies in buckets that are 2 % wide, from a nanosecond on."""

    def __init__(self) -> None:
        self._mean = Mean()
        self._least = math.inf
        self._most = 0.0
        self._buckets: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        """Count one."""
        self._mean.add(seconds)
        self._least = min(self._least, seconds)
        self._most = max(self._most, seconds)
        self._buckets[math.floor(math.log(max(seconds, _SHORTEST_S)) / _BUCKET)] += 1

    def summary(self) -> Latency | None:
        """Mean and percentiles; None if there are no values."""
        if not self._mean.count:
            return None
        return Latency(self._mean.value, self._percentile(50), self._percentile(99))

    def _percentile(self, percent: float) -> float:
        """Interpolates linearly between the two values next to it, as NumPy does by default."""
        place = (self._mean.count - 1) * percent / 100
        low, high = self._at(math.floor(place)), self._at(math.ceil(place))
        return low + (high - low) * (place % 1)

    def _at(self, rank: int) -> float:
        """About the value at a place in the order, from 0."""
        for bucket in sorted(self._buckets):
            rank -= self._buckets[bucket]
            if rank < 0:
                break
        return min(max(math.exp((bucket + 0.5) * _BUCKET), self._least), self._most)


@lru_cache(maxsize=1024)
def _passes(samples: int, right: int, draws: tuple[int, ...] | None) -> list[tuple[int, float]]:
    """Pass@k of one question, by k. Most questions of a run have the same few shapes."""
    return [(k, pass_at_k(samples, right, k)) for k in _up_to(samples, draws)]


def _up_to(k: int, draws: tuple[int, ...] | None) -> list[int]:
    """Those of `draws` that are at most k; without any 1, 2, 4, ... below k, and k; nothing for k = 0."""
    if draws is not None:
        return [draw for draw in draws if draw <= k]
    return [*(2**power for power in range(max(k - 1, 0).bit_length())), *([k] if k else [])]
