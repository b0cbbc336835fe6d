"""What a request wants, as far as a simulated model cares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from matrix.serving.backend import ApiError, Json
from matrix.serving.simulated.schema import smallest
from matrix.serving.simulated.text import CHARACTERS_PER_TOKEN

_TOKENS_PER_MESSAGE = 4
"""What a chat template puts around a message, more or less."""
_TOKENS_PER_ATTACHMENT = 256
"""An image, a sound: no model's own figure."""
_MOST_CHOICES = 4096


@dataclass(frozen=True, slots=True)
class Asked:
    """A request.

    Attributes:
        model: Name that it asks for; None: any.
        prompt_tokens: Estimated length of all its prompts.
        prompts: Number of prompts; 1 for a chat.
        n: Answers to each.
        limit: Tokens that an answer may have; None: no limit.
        stop: Strings at which an answer ends.
        forced: What the answer has to be: JSON that fits a schema; None: anything.
        tool: Name of the function that is called; None: none.
        is_tool_named: Whether the request named it.
        logprobs: Number of alternatives to each token that are told, 0: only the token's own; None: nothing.
        cached_tokens: Those of the prompts that the prefix cache had; None without one.
    """

    model: str | None
    prompt_tokens: int
    prompts: int = 1
    n: int = 1
    limit: int | None = None
    stop: tuple[str, ...] = ()
    forced: str | None = None
    tool: str | None = None
    is_tool_named: bool = False
    logprobs: int | None = None
    cached_tokens: int | None = None


def read_chat(body: Json) -> Asked:
    """Read the body of a chat completion request.

    Raises:
        ApiError: 400, for what OpenAI's API doesn't allow.
    """
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        raise ApiError(400, "messages should be a list of objects, at least one.")
    tokens = _TOKENS_PER_MESSAGE * len(messages)
    characters = 0
    for message in messages:
        content = message.get("content")
        if isinstance(content, str):
            characters += len(content)
        else:
            more, attachments = _parts(content)
            characters += more
            tokens += attachments * _TOKENS_PER_ATTACHMENT
    tools = body.get("tools")
    if tools:
        characters += len(orjson.dumps(tools))
    tool, arguments = _tool(body.get("tool_choice"), tools)
    return Asked(
        model=body.get("model"),
        prompt_tokens=tokens + _tokens(characters),
        n=_number(body, "n", _MOST_CHOICES) or 1,
        limit=_number(body, "max_completion_tokens") or _number(body, "max_tokens"),
        stop=_stop(body),
        forced=_forced(body) if arguments is None else arguments,
        tool=tool,
        is_tool_named=isinstance(body.get("tool_choice"), dict),
        logprobs=(body.get("top_logprobs") or 0) if body.get("logprobs") else None,
    )


def read_completion(body: Json) -> Asked:
    """Read the body of a text completion request; raises as `read_chat`."""
    lengths = _lengths(body.get("prompt"), "prompt")
    return Asked(
        model=body.get("model"),
        prompt_tokens=sum(lengths),
        prompts=len(lengths),
        n=_number(body, "n", _MOST_CHOICES) or 1,
        limit=_number(body, "max_tokens"),
        stop=_stop(body),
        forced=_forced(body),
        logprobs=body.get("logprobs"),
    )


def read_embedding(body: Json) -> tuple[Asked, list[Any], int | None]:
    """Read the body of an embedding request: what it is, its inputs, and how long the vectors should be."""
    given = body.get("input")
    lengths = _lengths(given, "input")
    inputs = given if isinstance(given, list) and not isinstance(given[0], int) else [given]
    asked = Asked(model=body.get("model"), prompt_tokens=sum(lengths), prompts=len(lengths), n=0)
    return asked, inputs, _number(body, "dimensions", 65536)


def _tokens(characters: int) -> int:
    return -(-characters // CHARACTERS_PER_TOKEN)


def _parts(content: Any) -> tuple[int, int]:
    """Characters of the texts in a message, and the number of parts that aren't text."""
    if content is None:
        return 0, 0
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise ApiError(400, "The content of a message should be a string or a list of parts.")
    texts = [len(part["text"]) for part in content if isinstance(part.get("text"), str)]
    return sum(texts), len(content) - len(texts)


def _lengths(given: Any, key: str) -> list[int]:
    """Tokens of each prompt: a string, token ids, or a list of either."""
    if isinstance(given, str):
        return [max(1, _tokens(len(given)))]
    if isinstance(given, list) and given:
        if all(isinstance(item, int) for item in given):
            return [len(given)]
        if all(isinstance(item, str | list) for item in given):
            return [max(1, _tokens(len(item)) if isinstance(item, str) else len(item)) for item in given]
    raise ApiError(400, f"{key} should be a string, a list of strings, or token ids.")


def _number(body: Json, key: str, most: int | None = None) -> int | None:
    number = body.get(key)
    if number is None:
        return None
    if not isinstance(number, int) or isinstance(number, bool) or number < 1 or (most and number > most):
        raise ApiError(400, f"{key} should be a number from 1{f' to {most}' if most else ' on'}, not {number!r}.")
    return number


def _stop(body: Json) -> tuple[str, ...]:
    stop = body.get("stop") or ()
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(item, str) and item for item in stop):
        raise ApiError(400, "stop should be a string or a list of strings.")
    return stop


def _forced(body: Json) -> str | None:
    """The JSON that `response_format`, or vLLM's `structured_outputs`, makes of the answer."""
    wanted = body.get("response_format") or {}
    if wanted.get("type") == "json_schema":
        return _json((wanted.get("json_schema") or {}).get("schema"))
    if wanted.get("type") == "json_object":
        return "{}"
    structured = body.get("structured_outputs") or {}
    if structured.get("choice"):
        return str(structured["choice"][0])
    if schema := structured.get("json"):
        return _json(orjson.loads(schema) if isinstance(schema, str) else schema)
    return None


def _tool(choice: Any, tools: Any) -> tuple[str | None, str | None]:
    """Name and arguments of the call that a request forces."""
    if not isinstance(choice, dict) and choice != "required":
        return None, None
    functions = {tool["function"]["name"]: tool["function"] for tool in tools or () if tool.get("type") == "function"}
    if not functions:
        raise ApiError(400, "tool_choice asks for a call, but tools has no function.")
    name = choice.get("function", {}).get("name") if isinstance(choice, Mapping) else next(iter(functions))
    if name not in functions:
        raise ApiError(400, f"tool_choice names {name!r}, which isn't one of tools.")
    return name, _json(functions[name].get("parameters") or {"type": "object"})


def _json(schema: Any) -> str:
    return orjson.dumps(smallest(schema)).decode()
