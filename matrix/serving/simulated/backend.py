"""The simulated engine: the backend that plays a model which isn't there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

from matrix.client.rates import Rates
from matrix.serving.backend import ApiError, Json, ModelBackend
from matrix.serving.meter import gauge
from matrix.serving.simulated.admission import Admission
from matrix.serving.simulated.asked import Asked, read_chat, read_completion, read_embedding
from matrix.serving.simulated.prefix import PrefixCache, chat_text, completion_texts, message_text
from matrix.serving.simulated.script import Fate, Script
from matrix.serving.simulated.shapes import Chat, Completion, Shape, embedding
from matrix.spec.engine import SimulatedEngine
from matrix.spec.model import ModelSpec

_CHUNK_S = 50e-6
"""What a chunk costs the process, more or less: streams whose chunks are this far apart, times their number, fit in."""
_DIMENSIONS = 384


class SimulatedBackend(ModelBackend):
    """Answers with words, after a while, as `engine` says.

    Args:
        engine: Latencies, lengths, failures and limits.
        model: Its name, and its context length if it has one.

    Raises:
        DataError: `engine.outputs` can't be replayed.
    """

    def __init__(self, engine: SimulatedEngine, model: ModelSpec) -> None:
        self._name = model.name
        self._seed = engine.seed
        self._script = Script(engine, model.context_length)
        self._rates = Rates(engine.requests_per_minute, engine.tokens_per_minute)
        self._answer_tokens = engine.output_tokens.mean
        self._admission = Admission(engine.max_running, engine.kv_cache_tokens)
        self._prefixes = PrefixCache(engine.prefix_cache_tokens) if engine.prefix_cache_tokens is not None else None
        self._streams = 0

    async def start(self) -> None:
        """Nothing to get ready."""

    async def close(self) -> None:
        """Nothing to give back."""

    def models(self) -> list[str]:
        """The model's name."""
        return [self._name]

    def problem(self) -> str | None:
        """None: it always can."""
        return None

    def metrics(self) -> str:
        """Queue and KV cache."""
        waiting = gauge("matrix_requests_waiting", "Requests in a queue.", self._admission.waiting)
        usage = gauge("matrix_kv_cache_usage", "Share of the KV cache that is taken, 0 to 1.", self._admission.usage)
        return waiting + usage

    async def chat(self, body: Json) -> Json:
        """Answer a chat completion request."""
        return await self._whole(body, read_chat, Chat)

    async def complete(self, body: Json) -> Json:
        """Answer a text completion request."""
        return await self._whole(body, read_completion, Completion)

    def stream_chat(self, body: Json) -> AsyncIterator[Json]:
        """Answer a chat completion request in chunks."""
        return self._chunks(body, read_chat, Chat)

    def stream_complete(self, body: Json) -> AsyncIterator[Json]:
        """Answer a text completion request in chunks."""
        return self._chunks(body, read_completion, Completion)

    async def embed(self, body: Json) -> Json:
        """Answer a request for embeddings."""
        asked, inputs, dimensions = read_embedding(body)
        await self._play(asked, self._draw(asked))
        packed = body.get("encoding_format") == "base64"
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": embedding(given, dimensions or _DIMENSIONS, self._seed, packed=packed),
            }
            for index, given in enumerate(inputs)
        ]
        usage = {"prompt_tokens": asked.prompt_tokens, "total_tokens": asked.prompt_tokens}
        return {"object": "list", "model": asked.model or self._name, "data": data, "usage": usage}

    async def _whole(
        self, body: Json, read: Callable[[Json], Asked], shape: Callable[[Asked, Fate, str], Shape]
    ) -> Json:
        asked = read(body)
        fate = self._draw(asked)
        asked, fate = await self._play(asked, fate, body)
        return shape(asked, fate, self._name).whole()

    async def _play(self, asked: Asked, fate: Fate, body: Json | None = None) -> tuple[Asked, Fate]:
        """Let an answer take its time; returns both as they are with what the prefix cache had."""
        tokens = asked.prompt_tokens + fate.tokens
        await self._admission.enter(tokens)
        try:
            asked, fate = self._prefilled(asked, fate, body)
            await _begin(fate, fate.seconds)
        finally:
            self._admission.leave(tokens)
        self._answered(fate, body)
        return asked, fate

    def _prefilled(self, asked: Asked, fate: Fate, body: Json | None) -> tuple[Asked, Fate]:
        """The request when it begins to run: what the cache has of its prompt takes no time."""
        if self._prefixes is None or body is None:
            return asked, fate
        texts = [chat_text(body)] if "messages" in body else completion_texts(body)
        cached = sum(map(self._prefixes.read, texts))
        for text in texts:
            self._prefixes.keep(text)
        share = max(0.0, 1 - cached / asked.prompt_tokens)
        return replace(asked, cached_tokens=cached), replace(fate, first_token_s=fate.first_token_s * share)

    def _answered(self, fate: Fate, body: Json | None) -> None:
        """Keep an answer behind its prompt, for the next turn of the conversation."""
        if self._prefixes is not None and body is not None and "messages" in body:
            for choice in fate.choices:
                self._prefixes.keep(chat_text(body) + message_text("assistant", "".join(choice.tokens)))

    async def _chunks(
        self, body: Json, read: Callable[[Json], Asked], shape: Callable[[Asked, Fate, str], Shape]
    ) -> AsyncIterator[Json]:
        asked = read(body)
        fate = self._draw(asked)
        tokens = asked.prompt_tokens + fate.tokens
        await self._admission.enter(tokens)
        self._streams += 1
        try:
            asked, fate = self._prefilled(asked, fate, body)
            await _begin(fate, fate.first_token_s)
            made = shape(asked, fate, self._name)
            for chunk in made.first():
                yield chunk
            sent = -1
            async for due in self._pace(fate):
                for index, choice in enumerate(fate.choices):
                    # One that has no tokens at all still has to say that it is over.
                    if max(sent, 0) < len(choice.tokens) or (sent < 0 and not choice.tokens):
                        yield made.chunk(index, max(sent, 0), due)
                sent = due
            self._answered(fate, body)
            if (body.get("stream_options") or {}).get("include_usage"):
                yield made.last()
        finally:
            self._streams -= 1
            self._admission.leave(tokens)

    async def _pace(self, fate: Fate) -> AsyncIterator[int]:
        """Yield, each time that some tokens have fallen due, how many have since the beginning.

        Those of one moment, and those of a loop that is late, come together. With many streams in the process each
        gets its tokens in larger pieces, but its first and its last one in time.
        """
        longest = fate.longest
        if not fate.token_s:
            for due in range(1, longest):
                yield due
            yield longest
            return
        clock = asyncio.get_running_loop().time
        began = clock()
        due = min(1, longest)
        while True:
            yield due
            if due == longest:
                return
            now = clock()
            apart = max(self._streams * _CHUNK_S, began + due * fate.token_s - now)
            await asyncio.sleep(min(apart, began + (longest - 1) * fate.token_s - now))
            # Half a millisecond: what timers of libuv may be early by.
            due = max(due, min(longest, 1 + int((clock() - began + 0.0005) / fate.token_s)))

    def _draw(self, asked: Asked) -> Fate:
        """What becomes of a request; one that is refused counts neither for limits nor for the seed."""
        now = asyncio.get_running_loop().time()
        answers = asked.prompts * asked.n * (asked.limit or self._answer_tokens)
        if (wait_s := self._rates.wait_s(now, asked.prompt_tokens + answers)) > 0:
            raise ApiError(429, "Rate limit of the simulated engine reached.", retry_after_s=wait_s, kind="rate_limit")
        fate = self._script.next(asked)
        self._rates.spend(now, asked.prompt_tokens + fate.tokens)
        return fate


async def _begin(fate: Fate, seconds: float) -> None:
    """Let so much time pass, or fail where the first token would come.

    Raises:
        ApiError: 500, as it was drawn.
    """
    if fate.hangs:
        await asyncio.get_running_loop().create_future()
    if fate.fails:
        seconds = fate.first_token_s
    if seconds > 0:
        await asyncio.sleep(seconds)
    if fate.fails:
        raise ApiError(500, "Failure of the simulated engine.")
