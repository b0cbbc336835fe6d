"""Running sums of a team's rows."""

from __future__ import annotations

from collections import Counter, defaultdict

from matrix.data.means import Mean, Spread
from matrix.data.rows import AgentRow, Entry, tokens_of
from matrix.pipelines.summary import RoleSummary, TeamSummary
from matrix.pipelines.tally import Latencies


class TeamTally:
    """Why rows ended, what they measured, and what each role did."""

    def __init__(self) -> None:
        self._terminations: Counter[str] = Counter()
        self._means: defaultdict[str, Mean] = defaultdict(Mean)
        self._spreads: defaultdict[str, Spread] = defaultdict(Spread)
        self._cost_usd = 0.0
        self._roles: dict[str, _RoleTally] = {}

    def add(self, row: AgentRow) -> None:
        """Count a row."""
        self._terminations[row.termination] += 1
        self._cost_usd += row.cost_usd
        if row.status == "ok":
            for name, value in row.metrics.items():
                self._means[name].add(value)
                self._spreads[name].add(value)
        for entry in row.history:
            role = self._roles.get(entry.agent)
            if role is None:
                role = self._roles[entry.agent] = _RoleTally()
            role.add(entry)

    def summary(self) -> TeamSummary:
        """The sums so far."""
        return TeamSummary(
            terminations=dict(self._terminations.most_common()),
            metrics={
                name: {"mean": mean.value, "stderr": self._spreads[name].stderr, "count": mean.count}
                for name, mean in self._means.items()
            },
            agents={name: role.summary() for name, role in self._roles.items()},
            cost_usd=self._cost_usd,
        )


class _RoleTally:
    def __init__(self) -> None:
        self.turns = self.calls = self.replayed = 0
        self.prompt_tokens = self.cached_prompt_tokens = self.completion_tokens = 0
        self.turn_s, self.call_s = Latencies(), Latencies()

    def add(self, entry: Entry) -> None:
        self.turns += 1
        self.turn_s.add(entry.took_s)
        for call in entry.calls:
            self.calls += 1
            self.replayed += call.replayed
            if not call.replayed:
                self.call_s.add(call.took_s)
            prompt, cached, completion = tokens_of(call.usage)
            self.prompt_tokens += prompt
            self.cached_prompt_tokens += cached
            self.completion_tokens += completion

    def summary(self) -> RoleSummary:
        return RoleSummary(
            turns=self.turns,
            turn_s=self.turn_s.summary(),
            calls=self.calls,
            replayed=self.replayed,
            call_s=self.call_s.summary(),
            prompt_tokens=self.prompt_tokens,
            cached_prompt_tokens=self.cached_prompt_tokens,
            completion_tokens=self.completion_tokens,
        )
