"""Images that lie on this machine become part of the request."""

from __future__ import annotations

import asyncio
import base64
import mimetypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

_ELSEWHERE = ("http://", "https://", "data:")


def parts_of(body: Mapping[str, Any]) -> list[Any]:
    """The content parts of a request's messages; none where all content is text."""
    messages = body.get("messages")
    parts: list[Any] = []
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):
            parts += content
    return parts


async def with_images(body: Mapping[str, Any], parts: list[Any]) -> Mapping[str, Any]:
    """The request with each local image among its parts as a `data:` URL; the request itself if it has none.

    An image is local if `image_url` is a path or a `file://` URL, its ending is that of an image and the file exists.
    Anything else stays as it is: a server may know files that this machine doesn't have.

    Raises:
        OSError: A file can't be read.
    """
    found = {url: file for part in parts if (url := _url(part)) and (file := _local(url))}
    if not found:
        return body
    # Megabytes from a disk that may be far away: other requests go on meanwhile.
    data = await asyncio.to_thread(lambda: {url: _data_url(file) for url, file in found.items()})
    return {**body, "messages": [_with_data(message, data) for message in body["messages"]]}


def _url(part: Any) -> str | None:
    """The URL of a content part, if it is an image; OpenAI's shape, or the URL alone, which vLLM takes, too."""
    if not isinstance(part, dict) or part.get("type") != "image_url":
        return None
    image = part.get("image_url")
    url = image.get("url") if isinstance(image, dict) else image
    return url if isinstance(url, str) else None


def _local(url: str) -> Path | None:
    if url.startswith(_ELSEWHERE):
        return None
    file = Path(unquote(urlsplit(url).path) if url.startswith("file://") else url).expanduser()
    return file if _type(file) and file.is_file() else None


def _type(file: Path) -> str | None:
    kind, _ = mimetypes.guess_type(file.name)
    return kind if kind and kind.startswith("image/") else None


def _data_url(file: Path) -> str:
    return f"data:{_type(file)};base64,{base64.b64encode(file.read_bytes()).decode()}"


def _with_data(message: Any, data: Mapping[str, str]) -> Any:
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list):
        return message
    return {**message, "content": [_part_with_data(part, data.get(_url(part) or "")) for part in content]}


def _part_with_data(part: Any, data_url: str | None) -> Any:
    if data_url is None:
        return part
    image = part["image_url"] if isinstance(part["image_url"], dict) else {}
    return {**part, "image_url": {**image, "url": data_url}}
