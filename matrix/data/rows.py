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


@dataclass(frozen=True, slots=True)
class RowError:
    """Why a row has no answer.

    Attributes:
        type: Class of the failure, such as `timeout`, `connection` or `http_400`.
        message: What the server or the system said.
        attempts: Tries that were made.
    """

    type: str
    message: str
    attempts: int = 1


@dataclass(frozen=True, slots=True)
class Score:
    """What one scorer says of a row's answers, one item per answer.

    Attributes:
        values: 0 to 1 each; 1 is right.
        answers: The answer that was read from the text, in a form that can be compared; None where none could be read.
    """

    values: list[float]
    answers: list[str | None]


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
