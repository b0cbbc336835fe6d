"""What happens to each request: drawn when it is accepted, so that order and seed decide everything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from random import Random

from matrix.serving.backend import ApiError
from matrix.serving.simulated.asked import Asked
from matrix.serving.simulated.draws import sampler
from matrix.serving.simulated.text import Replay, chunked, pieces, words
from matrix.spec.engine import SimulatedEngine

Split = Callable[[str], list[str]]


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer.

    Attributes:
        tokens: Its text in pieces.
        finish: `stop`, `length` or `tool_calls`.
        logprobs: Of each token; empty unless asked for.
    """

    tokens: list[str]
    finish: str
    logprobs: list[float]


@dataclass(frozen=True, slots=True)
class Fate:
    """What was drawn for a request.

    Attributes:
        number: Its place among all that were accepted.
        fails: Whether it gets HTTP 500 instead of its first token.
        hangs: Whether it never gets anything.
        first_token_s: Seconds until the first token, once it runs.
        token_s: Seconds for each one after that.
        choices: Its answers.
        tokens: Of all answers together.
        longest: Tokens of the longest one.
    """

    number: int
    fails: bool
    hangs: bool
    first_token_s: float
    token_s: float
    choices: list[Choice]
    tokens: int
    longest: int

    @property
    def seconds(self) -> float:
        """From the moment it runs to its last token; answers to one request are made at the same time."""
        return self.first_token_s + self.token_s * max(0, self.longest - 1)


class Script:
    """Draws the fate of one request after another.

    Args:
        engine: Distributions, seed and failures.
        context_length: Tokens of prompt and answer together; None: no limit.

    Raises:
        DataError: The file of `engine.outputs` can't be replayed.
    """

    def __init__(self, engine: SimulatedEngine, context_length: int | None) -> None:
        self._first_token_s, self._token_s = sampler(engine.first_token_s), sampler(engine.token_s)
        self._output_tokens = sampler(engine.output_tokens)
        self._replay = Replay(engine.outputs) if engine.outputs is not None else None
        self._errors, self._failures = engine.error_rate, engine.error_rate + engine.hang_rate
        self._context_length = context_length
        self._seed = engine.seed << 64
        self._number = count()
        self._random = Random()  # noqa: S311 - seeded anew for each request

    def next(self, asked: Asked) -> Fate:
        """Draw for the next request.

        Raises:
            ApiError: 400, for a prompt that leaves no room for an answer; the request doesn't count then.
        """
        limit = asked.limit
        if self._context_length is not None and asked.n:
            room = self._context_length - asked.prompt_tokens // asked.prompts
            if room < 1:
                raise ApiError(
                    400,
                    f"This model's maximum context length is {self._context_length} tokens; "
                    f"the prompt has about {asked.prompt_tokens}.",
                )
            limit = room if limit is None else min(limit, room)
        number = next(self._number)
        random = self._random
        random.seed(self._seed + number)
        # Always all of it and in this order: what is set to fail doesn't change how long the others take.
        chance = random.random()
        first_token_s, token_s = self._first_token_s(random), self._token_s(random)
        choices = [self._choice(asked, limit, random) for _ in range(asked.prompts * asked.n)]
        lengths = [len(choice.tokens) for choice in choices]
        return Fate(
            number=number,
            fails=chance < self._errors,
            hangs=self._errors <= chance < self._failures,
            first_token_s=first_token_s,
            token_s=token_s,
            choices=choices,
            tokens=sum(lengths),
            longest=max(lengths, default=0),
        )

    def _choice(self, asked: Asked, limit: int | None, random: Random) -> Choice:
        tokens, split = self._text(asked, limit, random)
        finish = "tool_calls" if asked.tool is not None and not asked.is_tool_named else "stop"
        if asked.stop and (cut := _stopped("".join(tokens), asked.stop)) is not None:
            tokens = split(cut)
        if limit is not None and len(tokens) > limit:
            tokens, finish = tokens[:limit], "length"
        logprobs = [] if asked.logprobs is None else [-random.expovariate(2) for _ in tokens]
        return Choice(tokens, finish, logprobs)

    def _text(self, asked: Asked, limit: int | None, random: Random) -> tuple[list[str], Split]:
        """The whole answer, or a bit more than what the limit leaves of it; and what takes such a text apart."""
        if asked.forced is not None:
            return chunked(asked.forced), chunked
        replayed = None if self._replay is None else self._replay.next()
        if isinstance(replayed, str):
            return pieces(replayed), pieces
        number = max(1, round(self._output_tokens(random))) if replayed is None else replayed
        return words(random, number if limit is None else min(number, limit + 1)), pieces


def _stopped(text: str, stop: tuple[str, ...]) -> str | None:
    """The text before the first stop string; None if there is none in it."""
    ends = [at for at in map(text.find, stop) if at >= 0]
    return text[: min(ends)] if ends else None
