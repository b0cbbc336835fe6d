"""OpenAI's shapes: what gateways read in requests, and what answers and chunks are made of."""

from __future__ import annotations

import base64
import binascii
import json
import struct
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from matrix.serving.backend import ApiError, Json

VLLM_FIELDS = {
    "chat_template_kwargs",
    "ignore_eos",
    "min_p",
    "min_tokens",
    "prompt_logprobs",
    "repetition_penalty",
    "structured_outputs",
}
"""Fields of vLLM's and SGLang's own that vendors' APIs have nothing for."""


def refused(message: str) -> ApiError:
    """The error for a request that can't be put into the vendor's words."""
    return ApiError(400, message)


@contextmanager
def reading_a_request() -> Iterator[None]:
    """Within it, what can't be found or used is the request's fault: the body comes from a client as it is.

    Raises:
        ApiError: 400.
    """
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise refused(f"the request isn't as OpenAI's API wants it: {type(error).__name__}: {error}") from error


def refuse_fields(body: Json, fields: Iterable[str], api: str) -> None:
    """Refuse what would change the answer but has no counterpart in the vendor's API.

    A field that says what would happen anyway (null, 0, false, empty; `n` of 1) is let through.

    Raises:
        ApiError: 400, naming all such fields.
    """
    neutral = {"n": 1, "repetition_penalty": 1, "best_of": 1}
    if given := sorted(name for name in fields if body.get(name) and body[name] != neutral.get(name)):
        raise refused(f"{api} has no {', '.join(given)}")


def text_of(content: str | list[Json] | None) -> str:
    """The text of a message that can't hold anything else."""
    if content is None or isinstance(content, str):
        return content or ""
    if other := next((part["type"] for part in content if part.get("type") not in {"text", "refusal"}), None):
        raise refused(f"content of type {other!r} can't stand in a message that takes text alone")
    return "".join(part.get("text") or part.get("refusal") or "" for part in content)


def parts_of(content: str | list[Json] | None) -> list[Json]:
    """The content of a message as a list of parts."""
    if isinstance(content, list):
        return content
    return [{"type": "text", "text": content}] if content else []


def data_url(url: str) -> tuple[str, bytes] | None:
    """MIME type and bytes of a base64 data URL; None for any other URL."""
    head, comma, data = url.partition(",")
    if not (head.startswith("data:") and head.endswith(";base64") and comma):
        return None
    try:
        return head.removeprefix("data:").partition(";")[0], base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise refused(f"the data of a data URL is no base64: {error}") from error


def arguments_of(call: Json) -> Json:
    """The arguments of a tool call of an earlier message."""
    text = call["function"].get("arguments") or "{}"
    try:
        arguments = json.loads(text)
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise refused(f"the arguments of tool call {call.get('id')!r} are no JSON object")
    return arguments


def tool_result(text: str) -> Json:
    """What a tool said, as the object that vendors want: its own JSON object if it is one."""
    try:
        said = json.loads(text)
    except ValueError:
        said = None
    return said if isinstance(said, dict) else {"output": text}


def tool_call(call_id: str | None, name: str, arguments: Mapping[str, Any], index: int | None = None) -> Json:
    """A whole tool call of an answer; with its index in a chunk."""
    call: Json = {
        "id": call_id or f"call_{uuid.uuid4().hex}",
        "type": "function",
        "function": {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)},
    }
    return call if index is None else {"index": index, **call}


def choice(
    index: int, *, text: str, reasoning: str, calls: list[Json], finish: str | None, logprobs: Json | None = None
) -> Json:
    """One choice of a whole answer."""
    message: Json = {"role": "assistant", "content": text if text or not calls else None, "refusal": None}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish}


def completion(model: str, choices: list[Json], usage: Json | None) -> Json:
    """A `chat.completion`; without `usage` if the vendor tells none."""
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": choices,
        **({"usage": usage} if usage else {}),
    }


def usage_of(prompt: int, answer: int, *, cached: int | None = None, reasoning: int | None = None) -> Json:
    """A `usage`; `answer` counts the tokens of reasoning, too, as OpenAI does."""
    usage: Json = {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
    if cached is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": cached}
    if reasoning is not None:
        usage["completion_tokens_details"] = {"reasoning_tokens": reasoning}
    return usage


def embeddings(model: str, vectors: list[list[float]], encoding: str, tokens: int) -> Json:
    """A list of embeddings.

    Args:
        model: Name of the model.
        vectors: One for each text.
        encoding: `float`, or `base64` for numbers of 32 bits, little endian, as the `openai` client asks for.
        tokens: Tokens of all texts.
    """

    def told(vector: list[float]) -> list[float] | str:
        return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() if encoding == "base64" else vector

    return {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": told(vector)} for i, vector in enumerate(vectors)],
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


class Chunks:
    """Makes the chunks of one streamed chat completion."""

    def __init__(self, model: str) -> None:
        self._same = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
        }

    def delta(self, delta: Json, *, index: int = 0, finish: str | None = None, logprobs: Json | None = None) -> Json:
        """A piece of one choice."""
        one = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return {**self._same, "choices": [one]}

    def usage(self, usage: Json) -> Json:
        """The last chunk of a stream."""
        return {**self._same, "choices": [], "usage": usage}
