"""Requests and tokens per minute, for APIs that limit them. Pure state; `matrix.client.gate` waits with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_CHARACTERS_PER_TOKEN = 4
_TOKENS_PER_IMAGE = 1000
"""An image of 1024 x 1024 is 765 tokens for OpenAI's high detail, 1,500 and more for others. Usage corrects it."""
_TOKENS_OF_ANSWER = 1000
"""Where the request sets no limit."""


class Bucket:
    """A token bucket that refills smoothly and holds one second's worth, or one.

    So a minute sees no more than its limit and that one second's worth, and nothing comes in bursts. What is larger
    than the bucket is let through when that is full, and leaves a debt: it never waits in vain.

    Args:
        per_minute: Amount that may be spent per minute.
    """

    def __init__(self, per_minute: float) -> None:
        if not per_minute > 0:
            raise ValueError(f"per_minute={per_minute} isn't greater than 0")
        self._per_s = per_minute / 60
        self._size = max(1.0, self._per_s)
        self._level = self._size
        self._at = float("-inf")

    def wait_s(self, now: float, amount: float) -> float:
        """Seconds until an amount may be spent; 0: now."""
        self._refill(now)
        wait_s = (min(amount, self._size) - self._level) / self._per_s
        # Rounding must leave no rest of a wait that is over.
        return wait_s if wait_s > 1e-6 else 0.0

    def spend(self, now: float, amount: float) -> None:
        """Take an amount, or put one back if it is negative."""
        self._refill(now)
        self._level = min(self._level - amount, self._size)

    def _refill(self, now: float) -> None:
        if now > self._at:
            self._level = min(self._level + (now - self._at) * self._per_s, self._size)
            self._at = now


class Rates:
    """Limits of requests and of tokens per minute; None: without that limit.

    Tokens are estimated before a request (`estimate_tokens`) and corrected by its usage.
    """

    def __init__(self, requests_per_minute: float | None = None, tokens_per_minute: float | None = None) -> None:
        self._requests = Bucket(requests_per_minute) if requests_per_minute is not None else None
        self._tokens = Bucket(tokens_per_minute) if tokens_per_minute is not None else None

    @property
    def counts_tokens(self) -> bool:
        """Whether an estimate is needed."""
        return self._tokens is not None

    def wait_s(self, now: float, tokens: float) -> float:
        """Seconds until a request with so many tokens may be sent; 0: now."""
        requests_s = self._requests.wait_s(now, 1) if self._requests else 0.0
        return max(requests_s, self._tokens.wait_s(now, tokens)) if self._tokens else requests_s

    def spend(self, now: float, tokens: float) -> None:
        """Count a request that is sent."""
        if self._requests:
            self._requests.spend(now, 1)
        if self._tokens:
            self._tokens.spend(now, tokens)

    def correct(self, now: float, estimated: float, used: float) -> None:
        """Put right what was spent for a request, once its usage is known; 0 for a request that was refused."""
        if self._tokens:
            self._tokens.spend(now, used - estimated)

    def take_back(self, now: float, tokens: float) -> None:
        """Uncount a request that wasn't sent after all."""
        if self._requests:
            self._requests.spend(now, -1)
        self.correct(now, tokens, 0)


def estimate_tokens(body: Mapping[str, Any]) -> float:
    """Tokens that a request will cost at most, more or less: a quarter of its characters, and all answers it allows."""
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    if limit is None:
        limit = 0 if "input" in body else _TOKENS_OF_ANSWER
    text = _tokens_of(body.get("messages") or body.get("prompt") or body.get("input"))
    return text + limit * (body.get("n") or 1)


def _tokens_of(value: Any) -> float:
    if isinstance(value, str):
        return len(value) / _CHARACTERS_PER_TOKEN
    if isinstance(value, Mapping):
        if "image_url" in value:
            return _TOKENS_PER_IMAGE
        return sum(map(_tokens_of, value.values()))
    if isinstance(value, list):
        return sum(1.0 if isinstance(item, int) else _tokens_of(item) for item in value)
    return 0.0
