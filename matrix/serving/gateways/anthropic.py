"""Anthropic's Messages API."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import anthropic

from matrix.serving.backend import ApiError, Json
from matrix.serving.gateways import anthropic_format
from matrix.serving.gateways.anthropic_format import MessageStream
from matrix.serving.gateways.base import Gateway, Key, keys_of
from matrix.serving.gateways.stainless import client_options, of_status, refusal
from matrix.serving.gateways.unsupported import reading_a_request
from matrix.spec.engine import AnthropicEngine
from matrix.spec.model import ModelSpec

_STATUS_OF_TYPE = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
"""Of an error within a stream, whose status is 200 by then; https://platform.claude.com/docs/en/api/errors."""

_WITH_SAMPLING = "2023-06-01"
"""The last version with `temperature`, `top_p` and `top_k`; https://platform.claude.com/docs/en/api/versioning."""


class AnthropicGateway(Gateway):
    """Claude models."""

    vendor = anthropic_format.API
    answers_n = False

    def __init__(self, engine: AnthropicEngine, model: ModelSpec) -> None:
        super().__init__(engine, model, keys_of(engine, engine.api_key_env, engine.base_url))
        self._thinking_budget = engine.thinking_budget
        self._clients: dict[Key, anthropic.AsyncAnthropic] = {}

    async def start(self) -> None:
        """Open a client for each key."""
        self._clients = {
            key: anthropic.AsyncAnthropic(api_key=key.secret, base_url=key.base_url, **client_options(anthropic))
            for key in self.keys
        }

    async def close(self) -> None:
        """Close them."""
        for client in self._clients.values():
            await client.close()

    async def _chat(self, key: Key, body: Json) -> Json:
        message = await self._clients[key].messages.create(**self._asked(body))
        return anthropic_format.answer(message, self.model.name)

    async def _stream(self, key: Key, body: Json) -> AsyncGenerator[Json, None]:
        stream = MessageStream(self.model.name)
        async with await self._clients[key].messages.create(**self._asked(body), stream=True) as events:
            async for event in events:
                for chunk in stream.feed(event):
                    yield chunk
        for chunk in stream.end():
            yield chunk

    def _asked(self, body: Json) -> Json:
        with reading_a_request():
            asked = anthropic_format.request(body, self.model.name, self._thinking_budget)
        required = {name: asked.pop(name) for name in ("model", "messages", "max_tokens")}
        # The SDK has arguments for the newest API version only. That has no sampling any more, which needs the version
        # before, where some models still have it.
        samples = not asked.keys().isdisjoint({"temperature", "top_p", "top_k"})
        headers = {"anthropic-version": _WITH_SAMPLING} if samples else {}
        return {**required, "extra_body": asked, "extra_headers": headers}

    def _refusal(self, error: Exception) -> ApiError | None:
        if not isinstance(error, anthropic.APIStatusError):
            return refusal(anthropic, self.vendor, error)
        status = error.status_code if error.status_code >= 400 else _STATUS_OF_TYPE.get(error.type or "", 502)
        refused = of_status(self.vendor, error, status)
        if status == 429 and "spend_limit" in (error.error_code or ""):
            # No wait changes that; the client knows it by OpenAI's name.
            refused.kind = "insufficient_quota"
        return refused
