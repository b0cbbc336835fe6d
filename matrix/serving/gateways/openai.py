"""Servers that speak OpenAI's API themselves: requests and answers pass through as they are."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncGenerator

import openai

from matrix.serving.backend import ApiError, Json
from matrix.serving.gateways.base import Gateway, Key, gate_of, keys_of
from matrix.serving.gateways.stainless import answer_of, client_options, refusal
from matrix.spec.engine import OpenAIEngine, RemoteEngine
from matrix.spec.model import ModelSpec


class OpenAIFamilyGateway(Gateway):
    """What OpenAI's own API and Azure's have in common; subclasses make the clients."""

    def __init__(self, engine: RemoteEngine, model: ModelSpec, keys: list[Key]) -> None:
        super().__init__(engine, model, keys)
        self._counts_tokens = engine.tokens_per_minute is not None
        self._clients: dict[Key, openai.AsyncOpenAI] = {}

    @abstractmethod
    def _client(self, key: Key) -> openai.AsyncOpenAI:
        """The SDK's client with this key."""

    async def start(self) -> None:
        """Open the clients."""
        self._clients = {key: self._client(key) for key in self.keys}

    async def close(self) -> None:
        """Close them."""
        for client in self._clients.values():
            await client.close()

    async def _chat(self, key: Key, body: Json) -> Json:
        return await self._post("/chat/completions", key, body)

    def _stream(self, key: Key, body: Json) -> AsyncGenerator[Json, None]:
        return self._post_for_chunks("/chat/completions", key, body)

    async def _complete(self, key: Key, body: Json) -> Json:
        return await self._post("/completions", key, body)

    def _stream_completion(self, key: Key, body: Json) -> AsyncGenerator[Json, None]:
        return self._post_for_chunks("/completions", key, body)

    async def _embed(self, key: Key, body: Json) -> Json:
        return await self._post("/embeddings", key, body)

    def _refusal(self, error: Exception) -> ApiError | None:
        return refusal(openai, self.vendor, error)

    # By the SDK's `post`, which is there for what it has no method for: its `create` would leave out what it doesn't
    # know of the answer, and parse what nobody looks at.

    async def _post(self, path: str, key: Key, body: Json) -> Json:
        answer = await self._clients[key].post(path, cast_to=object, body={"model": self.model.name, **body})
        return answer_of(self.vendor, answer)

    async def _post_for_chunks(self, path: str, key: Key, body: Json) -> AsyncGenerator[Json, None]:
        body = {"model": self.model.name, **body, "stream": True}
        if self._counts_tokens:
            # Only then: not every server knows the option.
            body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
        async with await self._clients[key].post(
            path, cast_to=object, body=body, stream=True, stream_cls=openai.AsyncStream[object]
        ) as stream:
            async for chunk in stream:
                yield answer_of(self.vendor, chunk)


class OpenAIGateway(OpenAIFamilyGateway):
    """OpenAI, or any server with its API; several base URLs are replicas that share one key and its limits."""

    vendor = "The API"

    def __init__(self, engine: OpenAIEngine, model: ModelSpec) -> None:
        name = engine.api_key_env
        key = keys_of(engine, name)[0] if name else Key("none", "", gate_of(engine))
        super().__init__(engine, model, [Key(key.name, key.secret, key.gate, url) for url in engine.urls])

    def _client(self, key: Key) -> openai.AsyncOpenAI:
        # The SDK insists on a key; servers that ask for none don't look at it.
        return openai.AsyncOpenAI(api_key=key.secret or "none", base_url=key.base_url, **client_options(openai))
