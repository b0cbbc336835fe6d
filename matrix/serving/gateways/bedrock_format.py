"""OpenAI's chat format into that of Bedrock's Converse API and back: pure functions on what boto3 takes and gives.

https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html says what the fields mean.
"""

from __future__ import annotations

import base64
import json

from matrix.serving.backend import ApiError, Json
from matrix.serving.gateways import answers, requests
from matrix.serving.gateways.answers import Chunks
from matrix.serving.gateways.requests import Image
from matrix.serving.gateways.unsupported import VLLM_FIELDS, refuse_fields

API = "Bedrock's Converse API"

# `seed` isn't among them: OpenAI's is a best effort, too, and each of our requests has one.
_NO_COUNTERPART = VLLM_FIELDS | {
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "presence_penalty",
    "top_logprobs",
}

_OWN_FIELDS = ("guardrailConfig", "performanceConfig", "serviceTier", "requestMetadata", "promptVariables")
"""Fields of Converse that a request may bring under their own names."""

_FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "guardrail_intervened": "content_filter",
    "content_filtered": "content_filter",
}


def request(body: Json, model: str, thinking_budget: int | None) -> Json:
    """The arguments of `converse` and `converse_stream` for a chat completion request.

    Args:
        body: The request.
        model: Model id, inference profile or ARN.
        thinking_budget: What holds where the request doesn't say; None: no thinking.

    Raises:
        ApiError: 400: something has no counterpart.
    """
    refuse_fields(body, _NO_COUNTERPART, API)
    system, turns = requests.split_system(body["messages"])
    messages = requests.turns_of(turns, _block, _said_before, _result)
    inference: Json = {
        "maxTokens": requests.max_tokens_of(body),
        "temperature": body.get("temperature"),
        "topP": body.get("top_p"),
        "stopSequences": requests.stops_of(body) or None,
    }
    asked: Json = {
        "modelId": model,
        "messages": messages,
        "system": [{"text": system}] if system else None,
        "inferenceConfig": {name: value for name, value in inference.items() if value is not None},
        "toolConfig": _tools(body, messages),
        "outputConfig": _output(body),
        "additionalModelRequestFields": _model_fields(body, model, thinking_budget),
        **{name: body.get(name) for name in _OWN_FIELDS},
    }
    return {name: value for name, value in asked.items() if value}


def _result(call_id: str, parts: list[Json]) -> Json:
    return {"toolResult": {"toolUseId": call_id, "content": parts}}


def _block(part: str | Image) -> Json:
    """A part of a user's or a tool's message."""
    if isinstance(part, str):
        return {"text": part}
    if part.data:
        return {"image": {"format": part.media_type.removeprefix("image/"), "source": {"bytes": part.data}}}
    if part.url.startswith("s3://"):
        return {"image": {"format": _image_format(part.url), "source": {"s3Location": {"uri": part.url}}}}
    raise ApiError(400, f"{API} fetches no images: give them as data URLs (or s3:// URLs).")


def _image_format(url: str) -> str:
    suffix = url.rpartition(".")[2].lower()
    return "jpeg" if suffix == "jpg" else suffix


def _said_before(message: Json) -> list[Json]:
    """The blocks of an earlier answer. Its thoughts, if the client kept them, have to stand first.

    https://docs.aws.amazon.com/bedrock/latest/userguide/claude-messages-extended-thinking.html: with tools, thoughts go
    back with their signature as they came.
    """
    blocks: list[Json] = []
    for thought in message.get("thinking_blocks") or ():
        if thought["type"] == "redacted_thinking":
            blocks.append({"reasoningContent": {"redactedContent": base64.b64decode(thought["data"])}})
        else:
            said = {"text": thought["thinking"]}
            said |= {"signature": thought["signature"]} if thought.get("signature") else {}
            blocks.append({"reasoningContent": {"reasoningText": said}})
    if text := requests.text_of(message.get("content")):
        blocks.append({"text": text})
    for call in message.get("tool_calls") or ():
        use = {"toolUseId": call["id"], "name": call["function"]["name"], "input": requests.arguments_of(call)}
        blocks.append({"toolUse": use})
    return blocks


def _tools(body: Json, messages: list[Json]) -> Json | None:
    tools, choice = requests.tools_of(body), body.get("tool_choice")
    if not tools:
        return None
    if choice == "none":
        # Converse wants the tools as soon as a message speaks of one, and has no way to forbid them.
        if any("toolUse" in block for message in messages for block in message["content"]):
            raise ApiError(400, f"{API} can't forbid tools (tool_choice=none) once a message has called one.")
        return None
    specs = []
    for tool in tools:
        spec: Json = {"name": tool.name, "inputSchema": {"json": tool.parameters}}
        # An empty description is refused.
        spec |= {"description": tool.description} if tool.description else {}
        spec |= {"strict": True} if tool.strict else {}
        specs.append({"toolSpec": spec})
    config: Json = {"tools": specs}
    if isinstance(choice, dict) and choice.get("type") == "function":
        config["toolChoice"] = {"tool": {"name": choice["function"]["name"]}}
    elif choice in {"auto", "required"}:
        config["toolChoice"] = {"auto": {}} if choice == "auto" else {"any": {}}
    elif choice is not None:
        raise ApiError(400, f"tool_choice={choice!r}: should be none, auto, required or a function.")
    return config


def _output(body: Json) -> Json | None:
    """A schema goes into `outputConfig`, which the model is held to; models that can't do it are refused by Bedrock."""
    wanted = requests.schema_of(body)
    if wanted is None:
        return None
    if wanted.schema is None:
        raise ApiError(400, f"{API} has no response_format json_object: give a json_schema.")
    schema = {"name": wanted.name, "schema": json.dumps(wanted.schema)}
    return {"textFormat": {"type": "json_schema", "structure": {"jsonSchema": schema}}}


def _model_fields(body: Json, model: str, default_budget: int | None) -> Json:
    """What goes to the model as it is, and is called differently by each of them."""
    fields: Json = {}
    nova = "amazon.nova" in model
    if (top_k := body.get("top_k")) and top_k > 0:
        # https://docs.aws.amazon.com/nova/latest/userguide/complete-request-schema.html
        fields |= {"inferenceConfig": {"topK": top_k}} if nova else {"top_k": top_k}
    effort = body.get("reasoning_effort")
    budget = body.get("thinking_budget", None if effort else default_budget)
    if budget:
        fields["thinking"] = {"type": "enabled", "budget_tokens": budget}
    elif effort and effort != "none":
        fields |= _effort(effort, model, nova=nova)
    return fields | (body.get("additionalModelRequestFields") or {})


def _effort(effort: str, model: str, *, nova: bool) -> Json:
    """The fields for `reasoning_effort`.

    https://docs.aws.amazon.com/bedrock/latest/userguide/claude-messages-adaptive-thinking.html for Claude,
    https://docs.aws.amazon.com/nova/latest/nova2-userguide/extended-thinking.html for Nova; others (gpt-oss) know
    OpenAI's own name.
    """
    if "anthropic." in model:
        return {"thinking": {"type": "adaptive"}, "output_config": {"effort": effort}}
    if nova:
        return {"reasoningConfig": {"type": "enabled", "maxReasoningEffort": effort}}
    return {"reasoning_effort": effort}


def answer(response: Json, model: str) -> Json:
    """The `chat.completion` for what `converse` gave.

    Raises:
        ApiError: 502: the model made something that is no answer.
    """
    text: list[str] = []
    thoughts: list[str] = []
    blocks: list[Json] = []
    calls: list[Json] = []
    for block in response["output"]["message"]["content"]:
        if "text" in block:
            text.append(block["text"])
        elif "citationsContent" in block:
            text.extend(piece.get("text", "") for piece in block["citationsContent"].get("content", ()))
        elif "toolUse" in block:
            use = block["toolUse"]
            arguments = json.dumps(use["input"], ensure_ascii=False)
            calls.append(answers.tool_call(use["name"], arguments, use["toolUseId"]))
        elif "reasoningContent" in block:
            reasoning = block["reasoningContent"]
            said = reasoning.get("reasoningText") or {}
            thoughts.append(said.get("text", ""))
            blocks.append(thinking_block(said.get("text", ""), said.get("signature"), reasoning.get("redactedContent")))
    choice = answers.choice(
        0,
        _finish(response["stopReason"]),
        text="".join(text) or None,
        reasoning="".join(thoughts),
        tool_calls=calls,
        **({"thinking_blocks": blocks} if blocks else {}),
    )
    return answers.completion(model, [choice], usage(response["usage"]))


def thinking_block(text: str, signature: str | None, redacted: bytes | None) -> Json:
    """A block of thoughts in Anthropic's own shape, which the client gives back in `thinking_blocks` of the message."""
    if redacted is not None:
        return {"type": "redacted_thinking", "data": base64.b64encode(redacted).decode()}
    return {"type": "thinking", "thinking": text, **({"signature": signature} if signature else {})}


def usage(counted: Json) -> Json:
    """The `usage`. `inputTokens` leaves out what the prompt cache has to do with; OpenAI's count of a prompt doesn't.

    https://docs.aws.amazon.com/bedrock/latest/userguide/prompt-caching.html
    """
    cached = counted.get("cacheReadInputTokens")
    prompt = counted["inputTokens"] + (cached or 0) + (counted.get("cacheWriteInputTokens") or 0)
    return answers.usage(prompt, counted["outputTokens"], cached=cached)


def _finish(reason: str) -> str:
    if reason not in _FINISH:
        raise ApiError(502, f"The model's answer is none: {API} calls it {reason}.")
    return _FINISH[reason]


class ConverseStream:
    """Turns the events of one stream into chunks.

    Args:
        model: What chunks say.
    """

    def __init__(self, model: str) -> None:
        self._chunks = Chunks(model)
        self._calls: dict[int, int] = {}
        """Place among the tool calls of each block that is one."""
        self._without_input: set[int] = set()
        self._thoughts: dict[int, list[str]] = {}
        self._usage: Json | None = None
        self._ended = False

    def feed(self, event: Json) -> list[Json]:
        """The chunks for one event.

        Raises:
            ApiError: 502: the model made something that is no answer.
        """
        ((kind, told),) = event.items()
        if kind == "messageStart":
            return [self._chunks.delta(role="assistant", content="")]
        if kind == "contentBlockStart" and "toolUse" in told["start"]:
            return [self._call(told["contentBlockIndex"], told["start"]["toolUse"])]
        if kind in {"contentBlockDelta", "contentBlockStop"}:
            delta = self._delta(told["contentBlockIndex"], told.get("delta"))
            return [self._chunks.delta(**delta)] if delta else []
        if kind == "messageStop":
            self._ended = True
            return [self._chunks.delta(finish_reason=_finish(told["stopReason"]))]
        if kind == "metadata":
            self._usage = told["usage"]
        return []

    def end(self) -> list[Json]:
        """The chunk with the usage, after the last event.

        Raises:
            ApiError: 502: the stream broke off before the answer's end.
        """
        if not self._ended:
            raise ApiError(502, f"{API} broke off its stream before the end of the answer.")
        return [self._chunks.usage(usage(self._usage))] if self._usage else []

    def _call(self, block: int, use: Json) -> Json:
        self._calls[block] = len(self._calls)
        self._without_input.add(block)
        return self._chunks.call(self._calls[block], call_id=use["toolUseId"], name=use["name"])

    def _arguments(self, block: int, text: str) -> Json:
        return {"tool_calls": [{"index": self._calls[block], "function": {"arguments": text}}]}

    def _delta(self, block: int, delta: Json | None) -> Json:
        """What a piece of a block says; None: the block is over."""
        if delta is None:
            # A call without arguments has an empty object for OpenAI.
            return self._arguments(block, "{}") if block in self._without_input else {}
        if "text" in delta:
            return {"content": delta["text"]}
        if "toolUse" in delta:
            self._without_input.discard(block)
            return self._arguments(block, delta["toolUse"]["input"])
        reasoning = delta.get("reasoningContent") or {}
        if "text" in reasoning:
            self._thoughts.setdefault(block, []).append(reasoning["text"])
            return {"reasoning_content": reasoning["text"]}
        if reasoning:
            # The last of a block of thoughts: with the signature it can be given back.
            text = "".join(self._thoughts.pop(block, ()))
            given = thinking_block(text, reasoning.get("signature"), reasoning.get("redactedContent"))
            return {"thinking_blocks": [given]}
        return {}
