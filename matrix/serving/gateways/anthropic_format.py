"""OpenAI's chat format into that of Anthropic's Messages API and back; https://platform.claude.com/docs/en/api/messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import orjson

from matrix.serving.backend import ApiError, Json
from matrix.serving.gateways import requests
from matrix.serving.gateways.answers import Chunks, choice, completion, tool_call
from matrix.serving.gateways.answers import usage as told_usage
from matrix.serving.gateways.requests import Image
from matrix.serving.gateways.unsupported import VLLM_FIELDS, refuse_fields

if TYPE_CHECKING:
    from anthropic.types import Message, RawMessageStreamEvent

API = "Anthropic's API"

_MAX_TOKENS = 8192
"""The API insists on a limit; where a request sets none this holds, on top of a thinking budget."""

# `seed` isn't among them: OpenAI's is a best effort, too, and each of our requests has one.
_NO_COUNTERPART = VLLM_FIELDS | {"frequency_penalty", "logit_bias", "logprobs", "presence_penalty", "top_logprobs"}

_OWN_FIELDS = ("cache_control", "container", "inference_geo", "metadata", "service_tier", "speed")
"""Fields of the Messages API that a request may bring under their own names, beside `thinking`."""

_SAMPLING = {"temperature": (None, 1), "top_p": (None, 1), "top_k": (None, 0, -1)}
"""With the values that mean the default: many models refuse the fields themselves."""

_EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh", "max": "max"}

_FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


def request(body: Json, model: str, thinking_budget: int | None) -> Json:
    """The arguments of `messages.create` for a chat completion request.

    Args:
        body: The request.
        model: Name of the model.
        thinking_budget: Tokens to think for where the request doesn't say; None: no thinking.

    Raises:
        ApiError: 400, something has no counterpart.
    """
    refuse_fields(body, _NO_COUNTERPART, API)
    system, turns = requests.split_system(body["messages"])
    thinking, effort = _thinking(body, thinking_budget)
    budget = thinking.get("budget_tokens", 0) if thinking else 0
    asked: Json = {
        "model": model,
        "messages": requests.turns_of(turns, _block, _said_before, _result),
        "max_tokens": requests.max_tokens_of(body) or _MAX_TOKENS + budget,
        "system": system or None,
        **{name: body[name] for name, off in _SAMPLING.items() if body.get(name) not in off},
        "stop_sequences": requests.stops_of(body) or None,
        "thinking": thinking,
        "output_config": _output(body, effort),
        "tools": [_tool(tool) for tool in requests.tools_of(body)] or None,
        "tool_choice": _tool_choice(body),
        **{name: body.get(name) for name in _OWN_FIELDS},
    }
    return {name: value for name, value in asked.items() if value is not None}


def answer(message: Message, model: str) -> Json:
    """The completion for an answer."""
    return completion(model, [_choice(message)], _usage(message.usage), message.id)


def _thinking(body: Json, budget: int | None) -> tuple[Json | None, str | None]:
    """Whether and how long to think, by the request or else by the engine: what `thinking` and `effort` are."""
    own, effort = body.get("thinking"), body.get("reasoning_effort")
    if effort is None:
        return own or ({"type": "enabled", "budget_tokens": budget} if budget else None), None
    if effort == "none":
        return own or {"type": "disabled"}, None
    if effort not in _EFFORTS:
        raise ApiError(400, f"reasoning_effort={effort!r}: should be one of none, {', '.join(_EFFORTS)}.")
    # Models that know an effort find their own budget; newer ones refuse a number of tokens.
    return own or {"type": "adaptive", "display": "summarized"}, _EFFORTS[effort]


def _output(body: Json, effort: str | None) -> Json | None:
    config: Json = {"effort": effort} if effort else {}
    if wanted := requests.schema_of(body):
        if wanted.schema is None:
            raise ApiError(400, f"{API} has no response_format json_object: give a json_schema.")
        config["format"] = {"type": "json_schema", "schema": wanted.schema}
    return config or None


def _result(call_id: str, parts: list[Json]) -> Json:
    return {"type": "tool_result", "tool_use_id": call_id, "content": parts}


def _block(part: str | Image) -> Json:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if part.data:
        return {"type": "image", "source": {"type": "base64", "media_type": part.media_type, "data": part.base64}}
    return {"type": "image", "source": {"type": "url", "url": part.url}}


def _said_before(message: Json) -> list[Json]:
    """The blocks of an earlier answer; its thoughts, if the client kept them, have to stand first and unchanged."""
    blocks: list[Json] = list(message.get("thinking_blocks") or ())
    blocks += [_block(part) for part in requests.parts_of(message.get("content"))]
    for call in message.get("tool_calls") or ():
        arguments = requests.arguments_of(call)
        blocks.append({"type": "tool_use", "id": call["id"], "name": call["function"]["name"], "input": arguments})
    return blocks


def _tool(tool: requests.Tool) -> Json:
    told: Json = {"name": tool.name, "description": tool.description or None, "input_schema": tool.parameters}
    return {name: value for name, value in {**told, "strict": tool.strict}.items() if value is not None}


def _tool_choice(body: Json) -> Json | None:
    given = body.get("tool_choice")
    if not body.get("tools"):
        return None
    if isinstance(given, dict):
        choice: Json = {"type": "tool", "name": given["function"]["name"]}
    else:
        kinds = {None: "auto", "auto": "auto", "required": "any", "none": "none"}
        if given not in kinds:
            raise ApiError(400, f"tool_choice={given!r}: should be none, auto, required or a function.")
        choice = {"type": kinds[given]}
    if body.get("parallel_tool_calls") is False and choice["type"] != "none":
        choice["disable_parallel_tool_use"] = True
    return None if choice == {"type": "auto"} else choice


def _choice(message: Message) -> Json:
    texts, thoughts, calls, blocks = [], [], [], []
    for block in message.content:
        if block.type == "text":
            texts.append(block.text)
        elif block.type == "tool_use":
            calls.append(tool_call(block.name, orjson.dumps(block.input).decode(), block.id))
        elif block.type == "thinking":
            thoughts.append(block.thinking)
            blocks.append(_thought(block.thinking, block.signature))
        elif block.type == "redacted_thinking":
            blocks.append({"type": "redacted_thinking", "data": block.data})
    return choice(
        0,
        _finish(message.stop_reason),
        text="".join(texts) if texts or not calls else None,
        reasoning="\n\n".join(filter(None, thoughts)),
        tool_calls=calls,
        **({"thinking_blocks": blocks} if blocks else {}),
    )


def _thought(text: str, signature: str) -> Json:
    """A block of thoughts as the API wants it back in the next request."""
    return {"type": "thinking", "thinking": text, "signature": signature}


def _finish(stop_reason: str | None) -> str:
    return _FINISH.get(stop_reason or "", "stop")


def _usage(usage: Any) -> Json:
    created, read = usage.cache_creation_input_tokens or 0, usage.cache_read_input_tokens or 0
    details = usage.output_tokens_details
    return told_usage(
        (usage.input_tokens or 0) + created + read,
        usage.output_tokens,
        cached=read,
        reasoning=details.thinking_tokens if details else None,
        cache_creation_input_tokens=created,
    )


class MessageStream:
    """Turns the events of one stream into chunks.

    Args:
        model: What chunks say.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._chunks = Chunks(model)
        self._usage: Any = None
        self._calls = 0
        self._block: Any = None
        self._has_input = False
        self._finish: str | None = None

    def feed(self, event: RawMessageStreamEvent) -> Iterator[Json]:
        """The chunks for one event."""
        if event.type == "message_start":
            self._chunks = Chunks(self._model, event.message.id)
            self._usage = event.message.usage
        elif event.type == "content_block_start":
            self._block = event.content_block
            if self._block.type == "tool_use":
                self._has_input = False
                yield self._chunks.call(self._calls, call_id=self._block.id, name=self._block.name)
        elif event.type == "content_block_delta":
            yield from self._delta(event.delta)
        elif event.type == "content_block_stop":
            yield from self._stop()
        elif event.type == "message_delta":
            self._finish = event.delta.stop_reason or self._finish
            # Cumulative, and only of what changed.
            for name, value in event.usage:
                if value is not None:
                    setattr(self._usage, name, value)

    def end(self) -> Iterator[Json]:
        """The chunks after the last event.

        Raises:
            ApiError: 502, the stream broke off before the answer's end.
        """
        if self._finish is None:
            raise ApiError(502, f"{API} broke off its stream before the end of the answer.")
        yield self._chunks.delta(finish_reason=_finish(self._finish))
        yield self._chunks.usage(_usage(self._usage))

    def _delta(self, delta: Any) -> Iterator[Json]:
        if delta.type == "text_delta":
            yield self._chunks.delta(content=delta.text)
        elif delta.type == "thinking_delta":
            self._block.thinking += delta.thinking
            yield self._chunks.delta(reasoning_content=delta.thinking)
        elif delta.type == "signature_delta":
            self._block.signature = delta.signature
        elif delta.type == "input_json_delta" and self._block.type == "tool_use" and delta.partial_json:
            self._has_input = True
            yield self._chunks.call(self._calls, arguments=delta.partial_json)

    def _stop(self) -> Iterator[Json]:
        if self._block.type == "tool_use":
            if not self._has_input:
                # A call without arguments has an empty object for OpenAI.
                yield self._chunks.call(self._calls, arguments="{}")
            self._calls += 1
        elif self._block.type == "thinking":
            yield self._chunks.delta(thinking_blocks=[_thought(self._block.thinking, self._block.signature)])
        elif self._block.type == "redacted_thinking":
            yield self._chunks.delta(thinking_blocks=[{"type": "redacted_thinking", "data": self._block.data}])
