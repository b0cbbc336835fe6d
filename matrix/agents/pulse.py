"""How a team is doing: per role what was done, and where its rows are now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields

from matrix.spec.model import Price

_SLOWEST = 3


@dataclass(slots=True)
class RoleCount:
    """What a role did. Sums, so that those of several peers add up; `in_flight` is how it is now."""

    turns: int = 0
    turn_s: float = 0.0
    calls: int = 0
    call_s: float = 0.0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    completion_tokens: int = 0
    in_flight: int = 0

    def add(self, other: RoleCount) -> None:
        """Add what another peer counted, or the same one at another time."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))


@dataclass(slots=True)
class Pulse:
    """A team's state, of one peer or of all.

    Attributes:
        roles: By role, since the start.
        rows: Workflows in flight.
        slowest: Those that have been under way for longest: seconds, the row's name, and the role that has it.
    """

    roles: dict[str, RoleCount] = field(default_factory=dict)
    rows: int = 0
    slowest: list[tuple[float, str, str]] = field(default_factory=list)

    @property
    def turns(self) -> int:
        """Turns of all roles."""
        return sum(role.turns for role in self.roles.values())

    def metrics(self, elapsed_s: float, prices: Mapping[str, Price]) -> dict[str, float]:
        """As one flat record, for metrics.jsonl and trackers.

        Args:
            elapsed_s: Seconds since the workload started.
            prices: What roles' models cost, where that is known.
        """
        record: dict[str, float] = {
            "agents/rows_in_flight": self.rows,
            "agents/turns": self.turns,
            "agents/turns_per_s": round(self.turns / max(elapsed_s, 1e-9), 2),
        }
        for name, role in self.roles.items():
            record |= {
                f"agents/{name}/in_flight": role.in_flight,
                f"agents/{name}/turns": role.turns,
                f"agents/{name}/prompt_tokens": role.prompt_tokens,
                f"agents/{name}/completion_tokens": role.completion_tokens,
            }
            if name in prices:
                tokens = (role.prompt_tokens, role.cached_prompt_tokens, role.completion_tokens)
                record[f"agents/{name}/cost_usd"] = round(prices[name].usd(*tokens), 6)
            if role.turns:
                record[f"agents/{name}/turn_s"] = round(role.turn_s / role.turns, 4)
            if role.calls:
                record[f"agents/{name}/call_s"] = round(role.call_s / role.calls, 4)
        return record

    def line(self, elapsed_s: float) -> str:
        """As a part of a log line; `elapsed_s` since the workload started."""
        roles = ", ".join(f"{name} {role.in_flight}" for name, role in self.roles.items() if role.in_flight)
        slowest = "".join(f"; slowest: row {row} {age_s:.0f} s, at {role}" for age_s, row, role in self.slowest[:1])
        per_s = self.turns / max(elapsed_s, 1e-9)
        return f"{self.rows} workflows in flight, {per_s:.1f} turns/s{f' ({roles})' if roles else ''}{slowest}"


def total(pulses: Iterable[Pulse]) -> Pulse:
    """Of several peers together."""
    whole = Pulse()
    for pulse in pulses:
        for name, role in pulse.roles.items():
            whole.roles.setdefault(name, RoleCount()).add(role)
        whole.rows += pulse.rows
        whole.slowest += pulse.slowest
    whole.slowest = sorted(whole.slowest, reverse=True)[:_SLOWEST]
    return whole
