"""What a request in OpenAI's shape says, for vendors that have another one."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

import orjson

from matrix.serving.backend import ApiError, Json


class Image(NamedTuple):
    """An image of a message.

    Attributes:
        url: Where it is; empty if `data` has it.
        media_type: Such as `image/png`; empty if only the vendor will see.
        data: Its bytes; empty if `url` has it.
    """

    url: str
    media_type: str = ""
    data: bytes = b""

    @property
    def base64(self) -> str:
        """The bytes in base64."""
        return base64.b64encode(self.data).decode()


class Tool(NamedTuple):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: str
    description: str
    parameters: Json
    strict: bool | None


class Schema(NamedTuple):
    """The JSON schema that an answer has to fit; None: any JSON object."""

    name: str
    schema: Json | None


def split_system(messages: Sequence[Json]) -> tuple[str, list[Json]]:
    """The system prompt (all `system` and `developer` messages, by blank lines), and the other messages."""
    system = [text_of(message.get("content")) for message in messages if message["role"] in {"system", "developer"}]
    return "\n\n".join(system), [message for message in messages if message["role"] not in {"system", "developer"}]


def parts_of(content: Any) -> list[str | Image]:
    """The texts and images that a message's content consists of; none for None.

    Raises:
        ApiError: 400, a part is neither.
    """
    if content is None:
        return []
    if isinstance(content, str):
        return [content] if content else []
    return [_part(part) for part in content]


def turns_of(
    messages: Sequence[Json],
    block: Callable[[str | Image], Json],
    said_before: Callable[[Json], list[Json]],
    result: Callable[[str, list[Json]], Json],
) -> list[Json]:
    """Messages for vendors whose turns alternate between user and assistant: results of tools are the user's.

    Args:
        messages: Those without the system prompt.
        block: A part of a user's or a tool's message, in the vendor's shape.
        said_before: The parts of an assistant's message.
        result: A tool's result, of the id of its call and its parts.

    Raises:
        ApiError: 400 for a role that there isn't.
    """
    turns: list[Json] = []
    for message in messages:
        role, content = message["role"], message.get("content")
        if role == "assistant":
            blocks = said_before(message)
        elif role == "user":
            blocks = [block(part) for part in parts_of(content)]
        elif role == "tool":
            blocks = [result(message["tool_call_id"], [block(part) for part in parts_of(content)])]
        else:
            raise ApiError(400, f"There are no messages of role {role!r}.")
        turn = "assistant" if role == "assistant" else "user"
        if turns and turns[-1]["role"] == turn:
            turns[-1]["content"].extend(blocks)
        else:
            turns.append({"role": turn, "content": blocks})
    return turns


def text_of(content: Any) -> str:
    """The text of a message that can be nothing else, such as a system prompt.

    Raises:
        ApiError: 400, there is more than text.
    """
    parts = parts_of(content)
    if any(isinstance(part, Image) for part in parts):
        raise ApiError(400, "There is an image where only text can be.")
    return "".join(str(part) for part in parts)


def image_of(url: str) -> Image:
    """An image by its URL, which may hold it itself (`data:`, RFC 2397).

    Raises:
        ApiError: 400, it isn't valid base64.
    """
    if not url.startswith("data:"):
        return Image(url)
    head, _, data = url.removeprefix("data:").partition(",")
    media_type, *attributes = head.split(";")
    if "base64" not in attributes:
        return Image("", media_type, unquote_to_bytes(data))
    try:
        return Image("", media_type, base64.b64decode(data, validate=True))
    except binascii.Error as error:
        raise ApiError(400, f"The data of an image isn't valid base64: {error}.") from None


def tools_of(body: Json) -> list[Tool]:
    """The functions that the model may call.

    Raises:
        ApiError: 400, a tool isn't a function.
    """
    found = []
    for tool in body.get("tools") or ():
        if tool.get("type") != "function":
            raise ApiError(400, f"A tool of type {tool.get('type')!r}; only functions are understood.")
        function = tool["function"]
        parameters = function.get("parameters") or {"type": "object", "properties": {}}
        found.append(Tool(function["name"], function.get("description") or "", parameters, function.get("strict")))
    return found


def arguments_of(call: Json) -> Json:
    """The arguments of a tool call in an assistant's message.

    Raises:
        ApiError: 400, they are no JSON object.
    """
    raw = call["function"].get("arguments") or "{}"
    try:
        arguments = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"The arguments of tool call {call.get('id')} aren't valid JSON: {error}.") from None
    if not isinstance(arguments, dict):
        raise ApiError(400, f"The arguments of tool call {call.get('id')} aren't a JSON object.")
    return arguments


def schema_of(body: Json) -> Schema | None:
    """What `response_format` asks for; None: plain text."""
    given = body.get("response_format") or {}
    if given.get("type") == "json_schema":
        wanted = given["json_schema"]
        return Schema(wanted.get("name") or "answer", wanted.get("schema") or {"type": "object"})
    return Schema("answer", None) if given.get("type") == "json_object" else None


def max_tokens_of(body: Json) -> int | None:
    """The limit of an answer."""
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    return None if limit is None else int(limit)


def stops_of(body: Json) -> list[str]:
    """Texts that end an answer."""
    stop = body.get("stop") or []
    return [stop] if isinstance(stop, str) else list(stop)


def _part(part: Any) -> str | Image:
    kind = part.get("type")
    if kind == "text":
        return str(part["text"])
    if kind == "image_url":
        image = part["image_url"]
        return image_of(image["url"] if isinstance(image, dict) else image)
    raise ApiError(400, f"Content of type {kind!r}; text and image_url are understood.")
