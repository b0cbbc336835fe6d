"""Answers in OpenAI's shape: whole ones, and chunks of a stream."""

from __future__ import annotations

import base64
import struct
import time
import uuid
from collections.abc import Sequence
from typing import Any

from matrix.serving.backend import Json


def tool_call(name: str, arguments: str, call_id: str | None = None) -> Json:
    """A tool call of a message.

    Args:
        name: Of the function.
        arguments: As JSON.
        call_id: The vendor's; None: it has none, so one is made.
    """
    call_id = call_id or f"call_{uuid.uuid4().hex[:24]}"
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def choice(
    index: int,
    finish_reason: str,
    *,
    text: str | None,
    reasoning: str | None = None,
    tool_calls: Sequence[Json] = (),
    **more: Any,
) -> Json:
    """A choice of a completion; `more` are further fields of its message."""
    message: Json = {"role": "assistant", "content": text}
    if reasoning:
        message["reasoning_content"] = reasoning
    if tool_calls:
        message["tool_calls"] = list(tool_calls)
    return {"index": index, "message": {**message, **more}, "logprobs": None, "finish_reason": finish_reason}


def completion(model: str, choices: Sequence[Json], usage: Json, answer_id: str | None = None) -> Json:
    """A `chat.completion`."""
    return {
        "id": answer_id or _new_id(),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": list(choices),
        "usage": usage,
    }


def usage(prompt: int, answer: int, *, cached: int | None = None, reasoning: int | None = None, **more: Any) -> Json:
    """Token counts by OpenAI's names.

    Args:
        prompt: Tokens of the prompt, those from a cache included.
        answer: Tokens of the answer, its reasoning included.
        cached: Those of the prompt that came from the vendor's cache; None: it doesn't say.
        reasoning: Those of the answer that are reasoning; None: it doesn't say.
        more: What else the vendor tells, such as `cost` in US dollars.
    """
    told: Json = {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
    if cached is not None:
        told["prompt_tokens_details"] = {"cached_tokens": cached}
    if reasoning is not None:
        told["completion_tokens_details"] = {"reasoning_tokens": reasoning}
    return {**told, **more}


def usage_sum(all_usage: Sequence[Json]) -> Json:
    """The usage of several calls that make one answer."""
    total: Json = {}
    for one in all_usage:
        for name, value in one.items():
            if isinstance(value, dict):
                total[name] = usage_sum([total.get(name, {}), value])
            elif isinstance(value, int | float):
                total[name] = total.get(name, 0) + value
            else:
                total[name] = value
    return total


def embeddings(model: str, vectors: Sequence[Sequence[float]], encoding: str, tokens: int) -> Json:
    """A list of embeddings.

    Args:
        model: Name of the model.
        vectors: One for each text.
        encoding: `float`, or `base64` for numbers of 32 bits, little endian, which the `openai` client asks for.
        tokens: Tokens of all texts.
    """

    def told(vector: Sequence[float]) -> Sequence[float] | str:
        return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() if encoding == "base64" else vector

    return {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": told(vector)} for i, vector in enumerate(vectors)],
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def one_of(answers: Sequence[Json]) -> Json:
    """One `chat.completion` with the choices of several."""
    choices = [one for answer in answers for one in answer["choices"]]
    return {
        **answers[0],
        "choices": [{**one, "index": index} for index, one in enumerate(choices)],
        "usage": usage_sum([answer["usage"] for answer in answers]),
    }


class Chunks:
    """Makes the chunks of one stream, which share an id.

    Args:
        model: Name of the model.
        answer_id: The vendor's; None: it has none, so one is made.
    """

    def __init__(self, model: str, answer_id: str | None = None) -> None:
        self._head: Json = {
            "id": answer_id or _new_id(),
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
        }
        self._have_role: set[int] = set()

    def delta(self, index: int = 0, finish_reason: str | None = None, **delta: Any) -> Json:
        """One step of a choice: `content`, `reasoning_content`, or `tool_calls` made by `call`.

        The role is added to a choice's first step and has none of its own: a gateway can try again until there is one.
        """
        if index not in self._have_role:
            self._have_role.add(index)
            delta = {"role": "assistant", **delta}
        step = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**self._head, "choices": [step]}

    def call(
        self, position: int, *, index: int = 0, call_id: str | None = None, name: str | None = None, arguments: str = ""
    ) -> Json:
        """One step of a tool call.

        Args:
            position: Which of the choice's calls.
            index: Which choice.
            call_id: With the first step.
            name: With the first step; an id is made if the vendor has none.
            arguments: The next piece of the JSON.
        """
        if name is not None:
            call: Json = {"index": position, **tool_call(name, arguments, call_id)}
        else:
            call = {"index": position, "function": {"arguments": arguments}}
        return self.delta(index, tool_calls=[call])

    def usage(self, counts: Json) -> Json:
        """The last chunk."""
        return {**self._head, "choices": [], "usage": counts}


def _new_id() -> str:
    return f"chatcmpl-{uuid.uuid4().hex}"
