"""The row: what one request for one input, in one trial, gave. Format of `rows/*.jsonl` and `rows.jsonl`.

Nobody changes one that is made; they aren't `frozen` since that makes them five times as slow to make.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple


class RowKey(NamedTuple):
    """What makes a row one of a kind within a run dir.

    The place in the input does, since a run dir keeps to one input (its fingerprint is checked). A name may repeat.
    """

    # Takes the place of tuple's method of that name, which nobody calls.
    index: int  # type: ignore[assignment]
    trial: int


@dataclass(slots=True)
class Example:
    """One input row of a data set.

    Attributes:
        id: Its name: the value of `dataset.id_key`, or its number.
        index: Its place in the input, from 0.
        columns: Its values by column name.
    """

    id: str
    index: int
    columns: dict[str, Any]


@dataclass(slots=True)
class Response:
    """What the server answered; lists have one item per sampled answer (`n`).

    Attributes:
        text: The answers; empty string where a model only called tools or reasoned.
        finish_reason: Why each ended: `stop`, `length`, `tool_calls`, ...
        usage: Tokens as the server counted them (`prompt_tokens`, `completion_tokens`, ...).
        reasoning_content: The reasoning apart from the answer; None if the server gave none.
        tool_calls: OpenAI tool calls per answer; None if there are none.
        logprobs: OpenAI logprobs per answer; None if not asked for.
        latency_s: Seconds from sending the last try to its complete answer.
        endpoint: Base URL of the server that answered.
        attempts: Tries it took, the last included.
        prompt_logprobs: vLLM's logprobs of the prompt's tokens: of a completion one item per answer, of a chat one for
            the prompt they share; None if not asked for.
        embeddings: One per input, as numbers or base64, as it was asked for; None for an answer that is text.
        executed: What came of a program (`matrix.sandbox.execution.Executed`), whose stdout is the text and whose
            status is why it ended; None for an answer of a model.
    """

    text: list[str]
    finish_reason: list[str | None]
    usage: dict[str, Any]
    reasoning_content: list[str | None] | None
    tool_calls: list[list[dict[str, Any]]] | None
    logprobs: list[Any] | None
    latency_s: float
    endpoint: str
    attempts: int
    prompt_logprobs: list[Any] | None = None
    embeddings: list[Any] | None = None
    executed: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class RowError:
    """Why a row has no answer.

    Attributes:
        type: Class of the failure, such as `timeout`, `connection` or `http_400`.
        message: What the server or the system said.
        attempts: Tries that were made.
        traceback: Of an exception in a user's own code; None for all else.
    """

    type: str
    message: str
    attempts: int = 1
    traceback: str | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """What one scorer says of a row's answers, one item per answer.

    Attributes:
        values: 0 to 1 each; 1 is right.
        answers: The answer that was read from the text, in a form that can be compared; None where none could be read.
        statuses: Of answers that were run: what came of each, in a word; `answers` then says it in a line.
    """

    values: list[float]
    answers: list[str | None]
    statuses: list[str] | None = None


@dataclass(slots=True)
class Row:
    """One line of the output."""

    id: str
    index: int
    trial: int
    status: Literal["ok", "error"]
    request: dict[str, Any]
    response: Response | None = None
    error: RowError | None = None
    scores: dict[str, Score] = field(default_factory=dict)

    @property
    def key(self) -> RowKey:
        """The row's identity within its run dir."""
        return RowKey(self.index, self.trial)

    @property
    def usage(self) -> dict[str, Any]:
        """Tokens that it took, as servers counted them."""
        return self.response.usage if self.response else {}


@dataclass(slots=True)
class Call:
    """One call of a model or a tool in an agent's turn.

    Attributes:
        name: `llm`, or the tool's name.
        took_s: Seconds from the call to its result, waiting for a place included.
        usage: Tokens as the server counted them; empty for a tool.
        endpoint: Base URL of the server that answered; None for a tool.
        attempts: Tries it took.
        replayed: It was read from the journal of steps: an earlier attempt at the row had made it.
        error: What came of it instead of a result; None if it went well.
        result: Of a tool: the begin of what it gave. None for a model, whose answer is the turn's.
    """

    name: str
    took_s: float
    usage: dict[str, Any] = field(default_factory=dict)
    endpoint: str | None = None
    attempts: int = 1
    replayed: bool = False
    error: str | None = None
    result: str | None = None


def tokens_of(usage: dict[str, Any]) -> tuple[int, int, int]:
    """Tokens of a call: of its prompt, those of them that a server had in its cache, and of its answer."""
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    return int(usage.get("prompt_tokens") or 0), int(cached or 0), int(usage.get("completion_tokens") or 0)


@dataclass(slots=True)
class Entry:
    """One turn of an agent, as a row's history has it.

    Attributes:
        agent: The role whose turn it was.
        text: What it said.
        at_s: Seconds from the row's begin to the turn's.
        took_s: Seconds of the turn.
        data: What else it gave: whatever JSON can hold.
        tool_calls: OpenAI tool calls that it asked for; None without any.
        reasoning: The model's reasoning; None without any.
        calls: Calls of models and tools that it made.
    """

    agent: str
    text: str
    at_s: float = 0.0
    took_s: float = 0.0
    data: dict[str, Any] | None = None
    tool_calls: list[dict[str, Any]] | None = None
    reasoning: str | None = None
    calls: list[Call] = field(default_factory=list)

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Entry:
        """The entry that was written as this JSON object."""
        return cls(**{**fields, "calls": [Call(**call) for call in fields["calls"]]})


@dataclass(slots=True)
class AgentRow(Row):
    """One line of the output of a team of agents; `request` holds the row's columns under `task`.

    Attributes:
        history: Turns in the order in which they ended.
        termination: Why it ended: what a role said, `end`, a limit (`max_turns`, ...), or `error`.
        metrics: Figures that roles gave, by name.
        tokens: Sum of its calls' usage: `prompt_tokens`, `completion_tokens`, `cached_prompt_tokens`.
        took_s: Seconds from its begin to its end, in the attempt that ended it.
        cost_usd: What its calls cost, by the prices of the models that its roles ask; 0 where none has any.
    """

    history: list[Entry] = field(default_factory=list)
    termination: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    took_s: float = 0.0
    cost_usd: float = 0.0

    @property
    def usage(self) -> dict[str, Any]:
        """Tokens of all its calls."""
        cached = {"cached_tokens": self.tokens.get("cached_prompt_tokens", 0)}
        return {**self.tokens, "prompt_tokens_details": cached}
