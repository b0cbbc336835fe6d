"""From the bytes of an answer to a Response."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import orjson

from matrix.data.rows import Response

_SHOWN = 2000
"""Characters of a body that go into an error message."""

_COUNTS = frozenset({"prompt_tokens", "completion_tokens", "total_tokens"})
"""What a run adds up."""


class Origin(NamedTuple):
    """Where an answer came from.

    Attributes:
        latency_s: Seconds from sending the request to its complete answer.
        endpoint: Base URL of the server.
        attempts: Tries it took, the last included.
    """

    latency_s: float
    endpoint: str
    attempts: int


Answer = bytes | dict[str, Any]
"""The body of a successful answer: JSON as it came, or what it stands for."""

Parse = Callable[[Answer, Origin], Response]
"""Reads it; a ValueError says what is wrong, and shows where the body begins."""


def parse_chat(raw: Answer, origin: Origin) -> Response:
    """Read a chat completion.

    Raises:
        ValueError: It isn't one.
    """
    return _parse(raw, origin, "a chat completion", _of_chat)


def parse_completion(raw: Answer, origin: Origin) -> Response:
    """Read a text completion.

    Raises:
        ValueError: It isn't one.
    """
    return _parse(raw, origin, "a completion", _of_completion)


def parse_embeddings(raw: Answer, origin: Origin) -> Response:
    """Read a list of embeddings, in the order of the input.

    Raises:
        ValueError: It isn't one.
    """
    return _parse(raw, origin, "a list of embeddings", _of_embeddings)


def parse_execution(raw: Answer, origin: Origin) -> Response:
    """Read what came of a program.

    Raises:
        ValueError: It isn't that.
    """
    return _parse(raw, origin, "the outcome of a program", _of_execution)


def error_message(raw: bytes) -> str:
    """What a server says in the body of a refusal, whichever of the usual shapes it has; else the body's beginning."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        body = None
    found = None
    if isinstance(body, dict):
        # OpenAI and vLLM; some gateways without the inner object; FastAPI.
        error = body.get("error")
        found = error.get("message") if isinstance(error, dict) else error or body.get("message") or body.get("detail")
    if not found:
        return raw.decode(errors="replace")[:_SHOWN] or "(empty body)"
    return (found if isinstance(found, str) else orjson.dumps(found).decode())[:_SHOWN]


def _parse(raw: Answer, origin: Origin, what: str, fields_of: Callable[[dict[str, Any]], dict[str, Any]]) -> Response:
    try:
        answer: dict[str, Any] = raw if isinstance(raw, dict) else orjson.loads(raw)
        return Response(
            usage=_usage(answer.get("usage")),
            latency_s=origin.latency_s,
            endpoint=origin.endpoint,
            attempts=origin.attempts,
            **fields_of(answer),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        shown = orjson.dumps(raw) if isinstance(raw, dict) else raw
        raise ValueError(f"not {what} ({error!r}): {error_message(shown)}") from error


def _of_chat(answer: dict[str, Any]) -> dict[str, Any]:
    choices = _in_order(answer["choices"])
    messages = [choice["message"] for choice in choices]
    tool_calls = [message.get("tool_calls") or [] for message in messages]
    prompt_logprobs = answer.get("prompt_logprobs")
    return {
        "text": [_text(message.get("content")) for message in messages],
        "finish_reason": [choice.get("finish_reason") for choice in choices],
        # vLLM says `reasoning`, and did say `reasoning_content`, as SGLang, DeepSeek and others do.
        "reasoning_content": _if_any(
            [message.get("reasoning") or message.get("reasoning_content") for message in messages]
        ),
        "tool_calls": tool_calls if any(tool_calls) else None,
        "logprobs": _if_any([choice.get("logprobs") for choice in choices]),
        "prompt_logprobs": None if prompt_logprobs is None else [prompt_logprobs],
    }


def _of_completion(answer: dict[str, Any]) -> dict[str, Any]:
    choices = _in_order(answer["choices"])
    return {
        "text": [_text(choice["text"]) for choice in choices],
        "finish_reason": [choice.get("finish_reason") for choice in choices],
        "reasoning_content": None,
        "tool_calls": None,
        "logprobs": _if_any([choice.get("logprobs") for choice in choices]),
        "prompt_logprobs": _if_any([choice.get("prompt_logprobs") for choice in choices]),
    }


def _of_embeddings(answer: dict[str, Any]) -> dict[str, Any]:
    # Numbers, or base64 where the request asked for that.
    embeddings = [item["embedding"] for item in _in_order(answer["data"])]
    none: dict[str, Any] = {"reasoning_content": None, "tool_calls": None, "logprobs": None}
    return {"text": [], "finish_reason": [], "embeddings": embeddings, **none}


def _of_execution(answer: dict[str, Any]) -> dict[str, Any]:
    none: dict[str, Any] = {"reasoning_content": None, "tool_calls": None, "logprobs": None}
    return {"text": [_text(answer["stdout"])], "finish_reason": [answer["status"]], "executed": answer, **none}


def _in_order(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not items:
        raise ValueError("it is empty")
    return items if len(items) == 1 else sorted(items, key=lambda item: item.get("index", 0))


def _if_any(items: list[Any]) -> list[Any] | None:
    return items if any(item is not None for item in items) else None


def _usage(usage: Any) -> dict[str, Any]:
    """What the server counted; a count that is no number is left out, since the answer is worth more than its count."""
    if not isinstance(usage, dict):
        return {}
    counts = {name: value for name, value in usage.items() if name not in _COUNTS or _is_count(value)}
    details = counts.get("prompt_tokens_details")
    if details is not None and not (isinstance(details, dict) and _is_count(details.get("cached_tokens"))):
        del counts["prompt_tokens_details"]
    return counts


def _is_count(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _text(content: Any) -> str:
    if content is not None and not isinstance(content, str):
        raise TypeError(f"content is a {type(content).__name__}, not text")
    return content or ""
