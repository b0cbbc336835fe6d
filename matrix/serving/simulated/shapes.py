"""The JSON objects of OpenAI's API that simulated answers are put into: whole ones and chunks.

https://platform.openai.com/docs/api-reference/chat/object, https://platform.openai.com/docs/api-reference/completions
"""

from __future__ import annotations

import base64
import hashlib
import math
import time
from abc import ABC, abstractmethod
from array import array
from typing import Any, Protocol

from matrix.serving.backend import Json
from matrix.serving.simulated.asked import Asked
from matrix.serving.simulated.script import Choice, Fate
from matrix.serving.simulated.text import words_near


class Shape(Protocol):
    """How answers look: `Chat` or `Completion`, made for one request."""

    def whole(self) -> Json:
        """The whole answer."""

    def first(self) -> list[Json]:
        """Chunks before the first token."""

    def chunk(self, index: int, begin: int, end: int) -> Json:
        """Some tokens of one choice."""

    def last(self) -> Json:
        """The chunk with the usage."""


class _Shape(ABC):
    kind = ""
    chunk_kind = ""
    prefix = ""

    def __init__(self, asked: Asked, fate: Fate, model: str) -> None:
        self._asked, self._fate = asked, fate
        self._head: Json = {
            "id": f"{self.prefix}-{fate.number}",
            "object": self.kind,
            "created": int(time.time()),
            "model": asked.model or model,
        }

    def whole(self) -> Json:
        choices = [self._choice(index, choice) for index, choice in enumerate(self._fate.choices)]
        return {**self._head, "choices": choices, "usage": self._usage()}

    def last(self) -> Json:
        return {**self._head, "object": self.chunk_kind, "choices": [], "usage": self._usage()}

    @abstractmethod
    def _choice(self, index: int, choice: Choice) -> Json:
        """One of the answers, whole."""

    def _usage(self) -> Json:
        prompt, completion = self._asked.prompt_tokens, self._fate.tokens
        usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        cached = self._asked.cached_tokens
        return usage if cached is None else {**usage, "prompt_tokens_details": {"cached_tokens": cached}}

    def _chunk(self, choice: Json) -> Json:
        return {**self._head, "object": self.chunk_kind, "choices": [choice]}


class Chat(_Shape):
    """`chat.completion` and its chunks."""

    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def first(self) -> list[Json]:
        """The role of each choice, and the name of what it calls."""
        deltas = []
        for index in range(len(self._fate.choices)):
            delta: Json = {"role": "assistant", "content": "" if self._asked.tool is None else None}
            if self._asked.tool is not None:
                delta["tool_calls"] = [{"index": 0, **self._call(index, "")}]
            deltas.append(self._chunk({"index": index, "delta": delta, "logprobs": None, "finish_reason": None}))
        return deltas

    def chunk(self, index: int, begin: int, end: int) -> Json:
        """Some tokens of one choice."""
        choice = self._fate.choices[index]
        text = "".join(choice.tokens[begin:end])
        if self._asked.tool is None:
            delta: Json = {"content": text}
        else:
            delta = {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}
        finish = choice.finish if end >= len(choice.tokens) else None
        logprobs = self._logprobs(choice, begin, end)
        return self._chunk({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish})

    def _choice(self, index: int, choice: Choice) -> Json:
        text = "".join(choice.tokens)
        if self._asked.tool is None:
            message: Json = {"role": "assistant", "content": text}
        else:
            message = {"role": "assistant", "content": None, "tool_calls": [self._call(index, text)]}
        logprobs = self._logprobs(choice, 0, len(choice.tokens))
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": choice.finish}

    def _call(self, index: int, arguments: str) -> Json:
        function = {"name": self._asked.tool, "arguments": arguments}
        return {"id": f"call-{self._fate.number}-{index}", "type": "function", "function": function}

    def _logprobs(self, choice: Choice, begin: int, end: int) -> Json | None:
        if self._asked.logprobs is None:
            return None
        told = []
        for token, logprob in zip(choice.tokens[begin:end], choice.logprobs[begin:end], strict=True):
            others = _alternatives(token, logprob, self._asked.logprobs)
            told.append({**_named(token, logprob), "top_logprobs": [_named(*other) for other in others]})
        return {"content": told}


class Completion(_Shape):
    """`text_completion` and its chunks."""

    kind, chunk_kind, prefix = "text_completion", "text_completion", "cmpl"

    def first(self) -> list[Json]:
        """Nothing."""
        return []

    def chunk(self, index: int, begin: int, end: int) -> Json:
        """Some tokens of one choice."""
        choice = self._fate.choices[index]
        finish = choice.finish if end >= len(choice.tokens) else None
        return self._chunk(self._told(index, choice, begin, end, finish))

    def _choice(self, index: int, choice: Choice) -> Json:
        return self._told(index, choice, 0, len(choice.tokens), choice.finish)

    def _told(self, index: int, choice: Choice, begin: int, end: int, finish: str | None) -> Json:
        text = "".join(choice.tokens[begin:end])
        logprobs = self._logprobs(choice, begin, end)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, choice: Choice, begin: int, end: int) -> Json | None:
        if self._asked.logprobs is None:
            return None
        tokens, logprobs = choice.tokens[begin:end], choice.logprobs[begin:end]
        offset = sum(map(len, choice.tokens[:begin]))
        offsets = []
        for token in tokens:
            offsets.append(offset)
            offset += len(token)
        tops = [
            dict(_alternatives(token, logprob, self._asked.logprobs))
            for token, logprob in zip(tokens, logprobs, strict=True)
        ]
        return {"text_offset": offsets, "token_logprobs": logprobs, "tokens": tokens, "top_logprobs": tops}


def _alternatives(token: str, logprob: float, number: int) -> list[tuple[str, float]]:
    """The most likely tokens at a place, the one that was taken first."""
    others = [word for word in words_near(token, number) if word != token]
    return [(token, logprob), *((word, logprob - rank) for rank, word in enumerate(others, start=1))][:number]


def _named(token: str, logprob: float) -> Json:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}


def embedding(given: Any, dimensions: int, seed: int, *, packed: bool) -> list[float] | str:
    """The vector of an input, of length 1: the same for the same input, and no relation between those of two.

    Args:
        given: Text, or token ids.
        dimensions: Its length.
        seed: Another one gives other vectors.
        packed: As base64 of 32-bit floats, as `encoding_format` of the API has it.
    """
    raw = hashlib.shake_128(f"{seed} {given}".encode()).digest(2 * dimensions)
    numbers = array("h", raw)
    norm = math.sqrt(sum(number * number for number in numbers)) or 1.0
    vector = [number / norm for number in numbers]
    return base64.b64encode(array("f", vector).tobytes()).decode() if packed else vector
