"""What a role sees of a row's workflow, and what it gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from matrix.data.rows import Call, Entry, Score


@dataclass(slots=True)
class Turn:
    """What a role gives back. A text alone, or a model's response, is a turn that says just that.

    Attributes:
        text: What the role says; others read it in `state.history`.
        next: Who is next: a role, `end`, or several roles of an edge with a join. None: as the topology has it.
        end: Ends the row, with this as its termination, such as `agreement`.
        data: What else others, and readers of the row, get to know: whatever JSON can hold.
        tool_calls: OpenAI tool calls that it asks for.
        reasoning: The model's reasoning.
    """

    text: str = ""
    next: str | Sequence[str] | None = None
    end: str | None = None
    data: dict[str, Any] | None = None
    tool_calls: list[dict[str, Any]] | None = None
    reasoning: str | None = None


@dataclass(slots=True)
class State:
    """A row's workflow as its roles see it. A role may change `scratch`, `metrics` and `scores`, and nothing else.

    Attributes:
        id: The row's name.
        index: Its place in the input.
        trial: Number of the trial.
        seed: Seed of the trial: the run's plus `trial`.
        task: The row's columns.
        history: Turns so far.
        scratch: What roles note for one another: whatever JSON can hold.
        metrics: Figures of the row, by name; the summary has their means.
        scores: What scorers said of the row's answer, by label; the summary treats them as a pipeline's.
        turns: Turns so far, as the limit counts them.
    """

    id: str
    index: int
    trial: int
    seed: int
    task: dict[str, Any]
    history: list[Entry] = field(default_factory=list)
    scratch: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    scores: dict[str, Score] = field(default_factory=dict)
    turns: int = 0

    @property
    def last(self) -> Entry | None:
        """The turn before; None at the first."""
        return self.history[-1] if self.history else None

    def last_of(self, *agents: str) -> Entry | None:
        """The last turn of any of these roles; None if they had none."""
        return next((entry for entry in reversed(self.history) if entry.agent in agents), None)

    def turns_of(self, *agents: str) -> list[Entry]:
        """All turns of these roles, in order."""
        return [entry for entry in self.history if entry.agent in agents]


__all__ = ["Call", "State", "Turn"]
