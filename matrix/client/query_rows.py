"""What `query_llm` sends and what it gives back: request bodies, and rows of `request` and `response`."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from matrix.data.rows import Response
from matrix.errors import ConfigError, Problem, RequestError, did_you_mean

CONSTRAINTS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
"""What an answer can be held to, by the names of vLLM's `structured_outputs`."""
_OPTIONS = ("disable_any_whitespace", "disable_additional_properties", "whitespace_pattern")
_USAGE = ("prompt_tokens", "completion_tokens", "total_tokens")


def stamped(data: Mapping[str, Any]) -> dict[str, Any]:
    """The request as its row shows it: a copy, with the time in `metadata.request_timestamp`.

    Raises:
        RequestError: It isn't an object.
    """
    if not isinstance(data, Mapping):
        raise RequestError("data", f"a request is an object with 'messages' or 'prompt', not {data!r}"[:200], 0)
    metadata = data.get("metadata")
    known = dict(metadata) if isinstance(metadata, Mapping) else {} if metadata is None else {"metadata": metadata}
    return {**data, "metadata": {**known, "request_timestamp": time.time()}}


def request_body(
    data: Mapping[str, Any],
    fields: Mapping[str, Any],
    *,
    logprobs: bool,
    top_logprobs: int | None,
    tools: Iterable[Any] | None,
    tool_choice: Any,
    guided_decoding: Mapping[str, Any] | None,
    extra_body: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The body for one request; what is None isn't sent, so that the server's default holds.

    Args:
        data: `messages` for a chat, or `prompt` for a completion.
        fields: What chats and completions have in common.
        logprobs: As for `make_request`, like all that follow.
        top_logprobs: As above.
        tools: As above; of a chat only.
        tool_choice: As above; of a chat only.
        guided_decoding: As above.
        extra_body: As above; wins over all others.

    Raises:
        RequestError: There is neither of the two.
        ConfigError: `guided_decoding` says what vLLM doesn't know.
    """
    body = {name: value for name, value in fields.items() if value is not None}
    if guided_decoding:
        body["structured_outputs"] = _structured_outputs(guided_decoding)
    wanted = logprobs or top_logprobs is not None
    if "messages" in data:
        body["messages"] = data["messages"]
        if wanted:
            body["logprobs"] = True
        if top_logprobs is not None:
            body["top_logprobs"] = top_logprobs
        # OpenAI's own NOT_GIVEN is false, too.
        if tools:
            body["tools"] = list(tools)
        if tool_choice:
            body["tool_choice"] = tool_choice
    elif "prompt" in data:
        body["prompt"] = data["prompt"]
        if wanted:
            # Here it is the number of alternatives to each token.
            body["logprobs"] = 1 if top_logprobs is None else top_logprobs
    else:
        raise RequestError("data", f"a request needs 'messages' or 'prompt'; it has {', '.join(data) or 'nothing'}", 0)
    return {**body, **(extra_body or {})}


def answer_row(
    request: Mapping[str, Any], response: Response, *, logprobs: bool, prompt_logprobs: bool
) -> dict[str, Any]:
    """The row of an answer.

    Args:
        request: As `stamped` gave it.
        response: What came back.
        logprobs: Whether they were asked for.
        prompt_logprobs: Whether they were asked for.
    """
    found: dict[str, Any] = {"finish_reason": response.finish_reason, "response_timestamp": time.time()}
    # A completion always has a text, a chat has none where the model only called tools.
    if "messages" not in request or any(response.text):
        found["text"] = response.text
    if response.reasoning_content is not None and any(response.reasoning_content):
        found["reasoning_content"] = response.reasoning_content
    if response.tool_calls is not None:
        found["tool_calls"] = [[_tool_call(call) for call in calls or ()] for calls in response.tool_calls]
    if logprobs and response.logprobs is not None:
        found["logprobs"] = [_tokens(one) for one in response.logprobs]
    if prompt_logprobs and response.prompt_logprobs is not None:
        found["prompt_logprobs"] = response.prompt_logprobs
    if response.usage:
        found["usage"] = {name: response.usage[name] for name in _USAGE if response.usage.get(name) is not None}
    return {"request": request, "response": found}


def error_row(request: Any, error: Exception) -> dict[str, Any]:
    """The row of a request that failed."""
    return {"request": request, "response": {"error": str(error), "response_timestamp": time.time()}}


def text_of(row: Mapping[str, Any]) -> str:
    """The first answer of a row; empty if it has none."""
    text = row["response"].get("text")
    return text[0] if text else ""


def _structured_outputs(guided_decoding: Mapping[str, Any]) -> dict[str, Any]:
    """The same in vLLM's terms: 0.12 took the `guided_...` fields away, and now ignores them without a word."""
    known = (*CONSTRAINTS, *_OPTIONS)
    problems = [
        Problem("guided_decoding", name, "no such constraint", did_you_mean(name, known))
        for name in guided_decoding
        if name not in known
    ]
    given = [name for name in CONSTRAINTS if guided_decoding.get(name) is not None]
    if len(given) != 1 and not problems:
        hint = f"give one of: {', '.join(CONSTRAINTS)}"
        problems = [Problem("guided_decoding", ", ".join(given) or "{}", "takes one constraint", hint)]
    if problems:
        raise ConfigError(problems, "The request can't be made.")
    return {name: value for name, value in guided_decoding.items() if value is not None}


def _tool_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function") or {}
    return {
        "name": function.get("name"),
        "arguments": function.get("arguments"),
        "id": call.get("id") or str(uuid.uuid4()),
    }


def _tokens(logprobs: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Tokens of one answer, whichever of the two shapes the server uses."""
    if logprobs is None:
        return []
    if "tokens" in logprobs:
        tops = logprobs.get("top_logprobs") or [None] * len(logprobs["tokens"])
        return [
            _token(token, logprob, [(other, value) for other, value in (top or {}).items()])
            for token, logprob, top in zip(logprobs["tokens"], logprobs["token_logprobs"], tops, strict=True)
        ]
    return [
        _token(one["token"], one["logprob"], [(top["token"], top["logprob"]) for top in one.get("top_logprobs") or ()])
        for one in logprobs.get("content") or ()
    ]


def _token(token: str, logprob: float, top: list[tuple[str, float]]) -> dict[str, Any]:
    found: dict[str, Any] = {"token": token, "logprob": logprob}
    if top:
        found["top_logprobs"] = [{"token": other, "logprob": value} for other, value in top]
    return found
