"""From the bytes of a chat completion to a Response."""

from __future__ import annotations

from typing import Any

import orjson

from matrix.data.rows import Response

_SHOWN = 2000
"""Characters of a body that go into an error message."""


def parse_chat(raw: bytes, *, latency_s: float, endpoint: str, attempts: int) -> Response:
    """Read the body of a successful answer.

    Raises:
        ValueError: It isn't a chat completion; the message says what is wrong, and shows where it begins.
    """
    try:
        answer: dict[str, Any] = orjson.loads(raw)
        choices = sorted(answer["choices"], key=lambda choice: choice.get("index", 0))
        messages = [choice["message"] for choice in choices]
        texts = [_text(message.get("content")) for message in messages]
        # vLLM says `reasoning`, and did say `reasoning_content`, as SGLang, DeepSeek and others do.
        reasoning = [message.get("reasoning") or message.get("reasoning_content") for message in messages]
        tool_calls = [message.get("tool_calls") or [] for message in messages]
        logprobs = [choice.get("logprobs") for choice in choices]
        finish_reason = [choice.get("finish_reason") for choice in choices]
        usage = answer.get("usage") or {}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not a chat completion ({error!r}): {error_message(raw)}") from error
    if not texts:
        raise ValueError(f"it has no choices: {error_message(raw)}")
    return Response(
        text=texts,
        finish_reason=finish_reason,
        usage=usage,
        reasoning_content=reasoning if any(text is not None for text in reasoning) else None,
        tool_calls=tool_calls if any(tool_calls) else None,
        logprobs=logprobs if any(item is not None for item in logprobs) else None,
        latency_s=latency_s,
        endpoint=endpoint,
        attempts=attempts,
    )


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


def _text(content: Any) -> str:
    if content is not None and not isinstance(content, str):
        raise TypeError(f"content is a {type(content).__name__}, not text")
    return content or ""
