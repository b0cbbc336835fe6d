"""What all gateways have: keys that take turns, their limits, retries and time-outs. A vendor adds its calls."""

from __future__ import annotations

import asyncio
import os
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager

from matrix.client.gate import Gate
from matrix.client.rates import Rates, estimate_tokens
from matrix.errors import AppError
from matrix.serving.backend import ApiError, Json, ModelBackend
from matrix.serving.gateways.answers import one_of
from matrix.spec.engine import RemoteEngine
from matrix.spec.model import ModelSpec

LONGEST_WAIT_S = 30.0
"""What a request waits for its turn, and what a vendor's `Retry-After` may ask for without the client hearing of it."""

_TRIED_AGAIN = frozenset({429, 500, 502, 503, 504})
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 8.0
"""Pause after a call that failed; it doubles."""


class Key:
    """A credential (and the address it is used at), with its limits.

    Attributes:
        name: What it is called in metrics: the name of its environment variable, for instance.
        secret: The credential itself; empty if the vendor's SDK finds it on its own.
        base_url: Address of the API; None: the vendor's own.
        gate: Where requests wait for their turn.
        load: Requests that wait for it or are under way with it.
    """

    def __init__(self, name: str, secret: str, gate: Gate, base_url: str | None = None) -> None:
        self.name = name
        self.secret = secret
        self.gate = gate
        self.base_url = base_url
        self.load = 0


def keys_of(engine: RemoteEngine, names: str | Sequence[str], base_url: str | None = None) -> list[Key]:
    """The keys that environment variables hold.

    Args:
        engine: Its limits are those of each key.
        names: Names of the variables.
        base_url: Address of the API; None: the vendor's own.

    Raises:
        AppError: A variable isn't set.
    """
    names = [names] if isinstance(names, str) else list(names)
    if missing := [name for name in names if not os.environ.get(name)]:
        raise AppError(f"{', '.join(missing)}: no such environment variable is set; it should hold a key of the API")
    return [Key(name, os.environ[name], gate_of(engine), base_url) for name in names]


def gate_of(engine: RemoteEngine) -> Gate:
    """A gate with the limits of one key."""
    return Gate(rates=Rates(engine.requests_per_minute, engine.tokens_per_minute))


class _Turn:
    """One call of the vendor's API: with which key, and what it used.

    Attributes:
        tokens: Estimated at first, then by the vendor's count.
    """

    def __init__(self, key: Key, tokens: float) -> None:
        self.key = key
        self.tokens = tokens

    def count(self, answer: Json) -> None:
        """Take the vendor's count from an answer or a chunk, if it is there."""
        if used := (answer.get("usage") or {}).get("total_tokens"):
            self.tokens = used


class _FailedCallError(Exception):
    """One call failed.

    Attributes:
        refusal: What the client gets to see if no other call is made.
        again: Whether another call may help.
    """

    def __init__(self, refusal: ApiError, again: bool) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal
        self.again = again


class Gateway(ModelBackend, ABC):
    """A backend that asks a vendor's API. Subclasses implement `_chat`, `_stream`, `_refusal`, and what else there is.

    The hooks get the request as it came and the key to use. They make exactly one call, with the SDK's own retries off
    and without a time-out of their own; `usage` has OpenAI's names, with `cost` (US dollars) if the vendor states one.

    Args:
        engine: How to reach the vendor.
        model: `model.name` is what the vendor calls it.
        keys: At least one.
    """

    vendor = "the vendor"
    """For error messages."""
    answers_n = True
    """Whether one call can give several answers (`n`); else there is a call for each."""

    def __init__(self, engine: RemoteEngine, model: ModelSpec, keys: Sequence[Key]) -> None:
        self.model = model
        self.keys = list(keys)
        self._timeout_s = engine.timeout_s
        self._max_attempts = engine.max_attempts
        self._calls: Counter[tuple[str, str]] = Counter()

    # What a vendor implements.

    @abstractmethod
    async def _chat(self, key: Key, body: Json) -> Json:
        """One chat completion; always with its usage."""

    @abstractmethod
    def _stream(self, key: Key, body: Json) -> AsyncGenerator[Json, None]:
        """Its chunks; always with the usage in the last one, whether the request asks for it or not."""

    @abstractmethod
    def _refusal(self, error: Exception) -> ApiError | None:
        """What an error of the vendor's SDK means; None: it isn't the vendor's, but a fault of ours.

        400, 401, 403, 404 as the vendor says, 429 and 503 with its `retry_after_s`, 504, and 502 for the rest.
        """

    async def _complete(self, key: Key, body: Json) -> Json:  # noqa: ARG002
        raise self._has_no("text completions")

    def _stream_completion(self, key: Key, body: Json) -> AsyncGenerator[Json, None]:  # noqa: ARG002
        raise self._has_no("text completions")

    async def _embed(self, key: Key, body: Json) -> Json:  # noqa: ARG002
        raise self._has_no("embeddings")

    async def _renew(self, key: Key) -> bool:  # noqa: ARG002
        """Get a new credential, since this one was refused (401, 403); whether there is one to try again with."""
        return False

    # What a server calls.

    @abstractmethod
    async def start(self) -> None:
        """Open the vendor's clients."""

    @abstractmethod
    async def close(self) -> None:
        """Close them."""

    def models(self) -> list[str]:
        """The one name that the vendor knows."""
        return [self.model.name]

    def problem(self) -> str | None:
        """None: whether the vendor answers is seen only by asking it."""
        return None

    def metrics(self) -> str:
        """Calls by key and outcome (`ok`, or the HTTP status), and requests under way or waiting by key."""
        lines = [
            "# HELP matrix_gateway_calls_total Calls of the vendor's API.",
            "# TYPE matrix_gateway_calls_total counter",
            *(
                f'matrix_gateway_calls_total{{key="{name}",outcome="{outcome}"}} {count}'
                for (name, outcome), count in sorted(self._calls.items())
            ),
            "# HELP matrix_gateway_requests Requests that are under way, or wait for their turn.",
            "# TYPE matrix_gateway_requests gauge",
            *(f'matrix_gateway_requests{{key="{name}"}} {load}' for name, load in sorted(self._loads().items())),
        ]
        return "\n".join(lines) + "\n"

    async def chat(self, body: Json) -> Json:
        """Answer a chat completion request."""
        if self.answers_n or (body.get("n") or 1) == 1:
            return await self._ask(self._chat, body)
        calls = [asyncio.ensure_future(self._ask(self._chat, {**body, "n": 1})) for _ in range(body["n"])]
        try:
            return one_of(await asyncio.gather(*calls))
        finally:
            for call in calls:
                call.cancel()

    def stream_chat(self, body: Json) -> AsyncIterator[Json]:
        """The same in chunks."""
        return self._ask_for_chunks(self._stream, body)

    async def complete(self, body: Json) -> Json:
        """Answer a text completion request."""
        return await self._ask(self._complete, body)

    def stream_complete(self, body: Json) -> AsyncIterator[Json]:
        """The same in chunks."""
        return self._ask_for_chunks(self._stream_completion, body)

    async def embed(self, body: Json) -> Json:
        """Answer a request for embeddings."""
        return await self._ask(self._embed, body)

    # Turns, tries and time-outs.

    async def _ask(self, call: Callable[[Key, Json], Awaitable[Json]], body: Json) -> Json:
        for attempt in range(1, self._max_attempts + 1):
            try:
                async with self._turn(body, again=attempt > 1) as turn:
                    async with asyncio.timeout(self._timeout_s):
                        answer = await call(turn.key, body)
                    turn.count(answer)
                    return answer
            except _FailedCallError as failed:
                await self._before_another(failed, attempt)
        raise AssertionError("the last attempt returns or raises")

    async def _ask_for_chunks(
        self, call: Callable[[Key, Json], AsyncGenerator[Json, None]], body: Json
    ) -> AsyncGenerator[Json, None]:
        if not self.answers_n and (body.get("n") or 1) > 1:
            raise ApiError(400, f"{self.vendor} gives one answer at a time: n={body['n']} can't be streamed.")
        shows_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        for attempt in range(1, self._max_attempts + 1):
            begun = False
            try:
                async with self._turn(body, again=attempt > 1) as turn, aclosing(call(turn.key, body)) as chunks:
                    deadline = asyncio.get_running_loop().time() + self._timeout_s
                    while True:
                        # Around each wait alone: at a `yield` the time-out would cancel whoever reads the stream.
                        async with asyncio.timeout_at(deadline):
                            chunk = await anext(chunks, None)
                        if chunk is None:
                            return
                        turn.count(chunk)
                        if shows_usage or (chunk := _without_usage(chunk)):
                            begun = True
                            yield chunk
            except _FailedCallError as failed:
                if begun:
                    raise failed.refusal from None
                await self._before_another(failed, attempt)

    @asynccontextmanager
    async def _turn(self, body: Json, *, again: bool) -> AsyncIterator[_Turn]:
        """Take the least loaded key, wait for its limits, and count what becomes of the call."""
        key = self._pick()
        estimated = estimate_tokens(body) if key.gate.counts_tokens else 0.0
        key.load += 1
        try:
            entered_at = await self._enter(key, estimated, again)
            turn = _Turn(key, estimated)
            try:
                yield turn
            except Exception as error:
                failed = self._failed(error)
                if failed and failed.refusal.status == 429:
                    key.gate.refused(entered_at, failed.refusal.retry_after_s or 0.0, estimated)
                else:
                    key.gate.leave()
                if failed is None:
                    raise
                self._calls[key.name, str(failed.refusal.status)] += 1
                if failed.refusal.status in {401, 403} and await self._renew(key):
                    failed.again = True
                # The SDK's error holds the request, and with it the key: it isn't shown.
                raise failed from None
            except BaseException:
                key.gate.leave()
                raise
            key.gate.succeeded(entered_at, estimated, turn.tokens)
            self._calls[key.name, "ok"] += 1
        finally:
            key.load -= 1

    def _pick(self) -> Key:
        """The key that is free first, and of those that are free the least loaded; several of these take turns."""
        key = min(self.keys, key=lambda key: (key.gate.opens_in_s(), key.load))
        if (wait_s := key.gate.opens_in_s()) >= LONGEST_WAIT_S:
            raise ApiError(429, f"{self.vendor} asked to wait for {wait_s:.0f} s.", retry_after_s=wait_s)
        self.keys.remove(key)
        self.keys.append(key)
        return key

    async def _enter(self, key: Key, tokens: float, again: bool) -> float:
        try:
            async with asyncio.timeout(LONGEST_WAIT_S):
                return await key.gate.enter(tokens, again=again)
        except TimeoutError:
            message = (
                f"{key.load} requests wait for the limits of {self.vendor}; this one did for {LONGEST_WAIT_S:g} s."
            )
            raise ApiError(429, message, retry_after_s=LONGEST_WAIT_S) from None

    def _failed(self, error: Exception) -> _FailedCallError | None:
        if isinstance(error, TimeoutError):
            # Another call may take as long: whether that is worth it is up to the client.
            message = f"{self.vendor} didn't answer within {self._timeout_s:g} s."
            return _FailedCallError(ApiError(504, message), again=False)
        refusal = error if isinstance(error, ApiError) else self._refusal(error)
        if refusal is None:
            return None
        message = refusal.message
        for secret in {key.secret for key in self.keys if key.secret}:
            message = message.replace(secret, "***")
        refusal = ApiError(refusal.status, message, retry_after_s=refusal.retry_after_s, kind=refusal.kind)
        # Of OpenAI's: the account has no money left, which no wait changes.
        is_broke = refusal.kind == "insufficient_quota"
        return _FailedCallError(refusal, again=refusal.status in _TRIED_AGAIN and not is_broke)

    async def _before_another(self, failed: _FailedCallError, attempt: int) -> None:
        """Wait until another call makes sense; raise what the client gets to see if none does."""
        refusal = failed.refusal
        wait_s = min(_FIRST_PAUSE_S * 2.0 ** (attempt - 1), _LONGEST_PAUSE_S) * random.uniform(0.5, 1)  # noqa: S311
        if refusal.status == 429 and refusal.retry_after_s:
            # The key's gate is closed for that long: another one may be open, else it is waited for there.
            wait_s = 0.0
            too_long = min(key.gate.opens_in_s() for key in self.keys) >= LONGEST_WAIT_S
        else:
            wait_s = max(wait_s, refusal.retry_after_s or 0.0)
            too_long = wait_s >= LONGEST_WAIT_S
        if attempt == self._max_attempts or too_long or not failed.again:
            raise refusal from None
        await asyncio.sleep(wait_s)

    def _has_no(self, what: str) -> ApiError:
        return ApiError(404, f"{self.vendor} has no {what}.")

    def _loads(self) -> Counter[str]:
        loads: Counter[str] = Counter()
        for key in self.keys:
            loads[key.name] += key.load
        return loads


def _without_usage(chunk: Json) -> Json | None:
    """A chunk for a client that didn't ask for usage; None if there was nothing else in it."""
    if "usage" not in chunk:
        return chunk
    return {name: value for name, value in chunk.items() if name != "usage"} if chunk.get("choices") else None
