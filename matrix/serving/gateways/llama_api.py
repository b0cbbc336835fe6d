"""Meta's Llama API, through its own SDK and in its own shape: https://llama.developer.meta.com/docs/api/chat."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator

import llama_api_client
from llama_api_client.types import CreateChatCompletionResponse, CreateChatCompletionResponseStreamChunk

from matrix.serving.backend import ApiError, Json
from matrix.serving.gateways import requests
from matrix.serving.gateways.answers import Chunks, choice, completion, tool_call, usage
from matrix.serving.gateways.base import Gateway, Key, keys_of
from matrix.serving.gateways.stainless import client_options, refusal
from matrix.serving.gateways.unsupported import VLLM_FIELDS, reading_a_request, refuse_fields
from matrix.spec.engine import LlamaApiEngine
from matrix.spec.model import ModelSpec

# Of vLLM's fields it has one. `seed` isn't among them: OpenAI's is a best effort, and each of our requests has one.
_NO_COUNTERPART = (VLLM_FIELDS - {"repetition_penalty"}) | {
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "presence_penalty",
    "reasoning_effort",
    "stop",
    "top_logprobs",
}
_SAME = ("repetition_penalty", "temperature", "tools", "tool_choice", "top_k", "top_p", "user")


class LlamaApiGateway(Gateway):
    """Llama models at Meta."""

    vendor = "The Llama API"
    answers_n = False

    def __init__(self, engine: LlamaApiEngine, model: ModelSpec) -> None:
        super().__init__(engine, model, keys_of(engine, engine.api_key_env, engine.base_url))
        self._clients: dict[Key, llama_api_client.AsyncLlamaAPIClient] = {}

    async def start(self) -> None:
        """Open a client for each key."""
        options = {key: client_options(llama_api_client) for key in self.keys}
        self._clients = {
            key: llama_api_client.AsyncLlamaAPIClient(api_key=key.secret, base_url=key.base_url, **options[key])
            for key in self.keys
        }

    async def close(self) -> None:
        """Close them."""
        for client in self._clients.values():
            await client.close()

    async def _chat(self, key: Key, body: Json) -> Json:
        answer = await self._clients[key].chat.completions.create(**self._asked(body))
        return _answer(answer, self.model.name)

    async def _stream(self, key: Key, body: Json) -> AsyncGenerator[Json, None]:
        stream = _Stream(self.model.name)
        async with await self._clients[key].chat.completions.create(**self._asked(body), stream=True) as chunks:
            async for chunk in chunks:
                for step in stream.feed(chunk):
                    yield step
        for step in stream.end():
            yield step

    def _asked(self, body: Json) -> Json:
        with reading_a_request():
            return _request(body, self.model.name)

    def _refusal(self, error: Exception) -> ApiError | None:
        return refusal(llama_api_client, self.vendor, error)


def _request(body: Json, model: str) -> Json:
    refuse_fields(body, _NO_COUNTERPART, LlamaApiGateway.vendor)
    asked: Json = {
        "model": model,
        "messages": [_message(message) for message in body["messages"]],
        "max_completion_tokens": requests.max_tokens_of(body),
        "response_format": _response_format(body),
        **{name: body.get(name) for name in _SAME},
    }
    if asked["top_k"] in {-1, 0}:
        asked["top_k"] = None
    return {name: value for name, value in asked.items() if value is not None}


def _message(message: Json) -> Json:
    """OpenAI's message, less what the API doesn't know and with text where it takes no null."""
    told: Json = {"role": "system" if message["role"] == "developer" else message["role"]}
    told["content"] = message.get("content") or ""
    if message["role"] == "tool":
        told["tool_call_id"] = message["tool_call_id"]
    if calls := message.get("tool_calls"):
        told["tool_calls"] = [{"id": call["id"], "function": call["function"]} for call in calls]
    return told


def _response_format(body: Json) -> Json | None:
    wanted = requests.schema_of(body)
    if wanted is None:
        return None
    if wanted.schema is None:
        raise ApiError(400, f"{LlamaApiGateway.vendor} has no response_format json_object: give a json_schema.")
    return {"type": "json_schema", "json_schema": {"name": wanted.name, "schema": wanted.schema}}


def _answer(answer: CreateChatCompletionResponse, model: str) -> Json:
    message = answer.completion_message
    content = message.content
    calls = [tool_call(call.function.name, call.function.arguments, call.id) for call in message.tool_calls or ()]
    text = content if isinstance(content, str) or content is None else content.text
    told = choice(0, message.stop_reason or "stop", text=None if calls and not text else text, tool_calls=calls)
    return completion(
        model, [told], _usage((metric.metric, metric.value) for metric in answer.metrics or ()), answer.id
    )


def _usage(metrics: Iterable[tuple[str, float]]) -> Json:
    counts = {name: int(value) for name, value in metrics}
    return usage(counts.get("num_prompt_tokens", 0), counts.get("num_completion_tokens", 0))


class _Stream:
    """Turns the events of one stream into chunks."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._chunks: Chunks | None = None
        self._position = -1
        self._finish: str | None = None
        self._usage: Json | None = None

    def feed(self, chunk: CreateChatCompletionResponseStreamChunk) -> Iterator[Json]:
        """The chunks for one event."""
        event = chunk.event
        self._finish = event.stop_reason or self._finish
        if event.metrics:
            self._usage = _usage((metric.metric, metric.value) for metric in event.metrics)
        delta = event.delta
        if delta.type == "tool_call":
            is_next = bool(delta.function.name)
            self._position += is_next
            arguments = delta.function.arguments or ""
            if is_next:
                yield self._begun(chunk.id).call(
                    self._position, call_id=delta.id, name=delta.function.name, arguments=arguments
                )
            elif arguments:
                yield self._begun(chunk.id).call(self._position, arguments=arguments)
        elif delta.text:
            yield self._begun(chunk.id).delta(content=delta.text)

    def end(self) -> Iterator[Json]:
        """The chunks after the last event.

        Raises:
            ApiError: 502, the stream broke off before the answer's end.
        """
        if self._finish is None:
            raise ApiError(502, f"{LlamaApiGateway.vendor} broke off its stream before the end of the answer.")
        chunks = self._begun(None)
        yield chunks.delta(finish_reason=self._finish)
        if self._usage:
            yield chunks.usage(self._usage)

    def _begun(self, answer_id: str | None) -> Chunks:
        self._chunks = self._chunks or Chunks(self._model, answer_id)
        return self._chunks
