"""What a run gave, as figures; `metrics` computes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from matrix.spec.model import Price

_NONE: Mapping[str, Price] = {}


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds from sending a request's last try to its complete answer, over the rows with an answer.

    `mean` is exact; `p50` and `p99` are at most 1 % off.
    """

    mean: float
    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class ScorerSummary:
    """What one scorer says of a run.

    A question is a row of the input; its samples are its answers over all trials. All figures but
    `accuracy_errors_as_wrong` are over the samples that there are.

    Attributes:
        questions: Questions with at least one sample.
        samples: Samples in all.
        k: Samples of a question; the largest number where questions differ, as they do after errors.
        incomplete: Questions with fewer samples than `k`, those without any not counted.
        accuracy: Mean over questions of the mean over their samples, also called avg@k; None without samples.
        stderr: Its standard error, clustered by question: samples of one question are no independent draws (Miller
            2024, "Adding Error Bars to Evals", arXiv:2411.00640). None for fewer than 2 questions.
        accuracy_errors_as_wrong: Accuracy if each sample lost to an error were wrong; None if there are no errors.
        pass_at: pass@k by k, for those that are asked for, else for 1, 2, 4, ... and `k` itself: the chance that one of
            k samples is right (value 1), in the mean over the questions that have k samples.
        maj_at_k: Value of the answer that most samples of a question give, in the mean over questions. Only answers
            that could be read vote; where several lead it is the mean of theirs, where there is none it is 0. None
            where answers are run, not compared.
        unparsed: Samples whose answer could not be read.
        unscored: Answered rows that lack this scorer; they count nowhere else.
        statuses: Of answers that were run: how many ended in which way, most frequent first.
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
    statuses: dict[str, int] = field(default_factory=dict)

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
            if self.maj_at_k is not None:
                figures[f"maj@{self.k}"] = self.maj_at_k
        counts = {name: getattr(self, name) for name in ("questions", "samples", "k", "incomplete")}
        unread = {"unparsed": self.unparsed, "unparsed_share": self.unparsed_share, "unscored": self.unscored}
        return figures | counts | unread | ({"statuses": self.statuses} if self.statuses else {})


@dataclass(frozen=True, slots=True)
class RoleSummary:
    """What one role of a team did, over all rows.

    Attributes:
        turns: Its turns.
        turn_s: Seconds of a turn; None without turns.
        calls: Its calls of models and tools.
        replayed: Those of them that an earlier attempt at the row had made.
        call_s: Seconds of a call, those read back not counted; None without calls.
        prompt_tokens: Tokens of prompts.
        cached_prompt_tokens: Those of them that a server had in its prefix cache.
        completion_tokens: Tokens of answers.
    """

    turns: int
    turn_s: Latency | None
    calls: int
    replayed: int
    call_s: Latency | None
    prompt_tokens: int
    cached_prompt_tokens: int
    completion_tokens: int

    def to_dict(self, price: Price | None) -> dict[str, Any]:
        """For JSON and trackers."""
        tokens = (self.prompt_tokens, self.cached_prompt_tokens, self.completion_tokens)
        return {**asdict(self), "cost_usd": round(price.usd(*tokens), 6) if price else None}


@dataclass(frozen=True, slots=True)
class TeamSummary:
    """What a team gave.

    Attributes:
        terminations: Rows by why they ended, most frequent first.
        metrics: By name: mean, standard error and count over the rows that have it.
        agents: By role.
        cost_usd: What the rows cost; 0 where no price is known.
    """

    terminations: dict[str, int]
    metrics: dict[str, dict[str, float | None]]
    agents: dict[str, RoleSummary]
    cost_usd: float

    def to_dict(self, prices: Mapping[str, Price]) -> dict[str, Any]:
        """For JSON and trackers; with what each role's model costs, where that is known."""
        agents = {name: role.to_dict(prices.get(name)) for name, role in self.agents.items()}
        return {"terminations": self.terminations, "metrics": self.metrics, "agents": agents}


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run gave.

    Attributes:
        rows: Rows, with an answer or an error.
        ok: Rows with an answer.
        errors: Rows with an error, by type; most frequent first.
        retries: Tries beyond the first, over all rows.
        prompt_tokens: Tokens of the prompts, as the servers counted them.
        cached_prompt_tokens: Those of them that a server had in its prefix cache; 0 where servers don't say.
        completion_tokens: Tokens of the answers, reasoning included.
        truncated: Answers that ended at their token limit (finish_reason `length`).
        empty: Answers without text or tool calls.
        latency: None without answers.
        scorers: By label.
        team: Of a team of agents; None of a pipeline.
        executed: Programs by what came of them, most frequent first; empty where none were run.
    """

    rows: int
    ok: int
    errors: dict[str, int]
    retries: int
    prompt_tokens: int
    cached_prompt_tokens: int
    completion_tokens: int
    truncated: int
    empty: int
    latency: Latency | None
    scorers: dict[str, ScorerSummary]
    team: TeamSummary | None = None
    executed: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self, prices: Mapping[str, Price] = _NONE) -> dict[str, Any]:
        """For summary.json and trackers: plain, nested dicts; `prices` are those of a team's roles."""
        latency = self.latency
        rows = {"total": self.rows, "ok": self.ok, "error": self.rows - self.ok, "errors": self.errors}
        tokens = {"prompt": self.prompt_tokens, "completion": self.completion_tokens}
        return {
            "rows": {**rows, "retries": self.retries},
            "tokens": {**tokens, "cached_prompt": self.cached_prompt_tokens},
            "answers": {"truncated": self.truncated, "empty": self.empty},
            "latency_s": {"mean": latency.mean, "p50": latency.p50, "p99": latency.p99} if latency else None,
            "scores": {label: scorer.to_dict() for label, scorer in self.scorers.items()},
            **({"executed": self.executed} if self.executed else {}),
            **(self.team.to_dict(prices) if self.team else {}),
        }
