"""Which servers a `url` of `query_llm` means."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from matrix.client.endpoints import Endpoints
from matrix.client.sessions import Shared
from matrix.client.transport import GRPC
from matrix.errors import ConfigError, Problem, RequestError

Urls = str | Sequence[str]
Url = Urls | Callable[[], Urls | Awaitable[Urls]]

_LOOK_AGAIN_S = 1.0
_HTTP = ("http://", "https://")
_HOST_AND_PORT = re.compile(rf"(?:{GRPC})?((?:[\w.-]+|\[[0-9A-Fa-f:.]+\]):\d+)")
"""With or without `grpc://`: fair-matrix has it without."""


async def find_servers(
    common: Shared, url: Url | None, cache: Callable[..., Any] | None, patience_s: float
) -> Endpoints:
    """The servers for a request, with the state that other requests left them in.

    Args:
        common: What the event loop's requests share.
        url: As for `make_request`.
        cache: Asked if `url` is empty.
        patience_s: How long to wait for a function that gives no URL.

    Raises:
        ConfigError: There is no URL, or one that is neither HTTP nor gRPC, or there are some of both.
        RequestError: The function fails, or has no URL to give.
    """
    if url and not callable(url):
        urls = _checked(url)
        return common.endpoints(urls, urls)
    if not callable(url) and cache is None:
        raise _refused("url", url, "is empty", "a base URL such as http://HOST:8000/v1, or endpoint_cache=...")

    async def ask(*, anew: bool) -> tuple[str, ...]:
        try:
            found = url() if callable(url) else cache(anew) if cache else ()
            return _checked(await found if inspect.isawaitable(found) else found)
        except ConfigError:
            raise
        except Exception as error:
            raise RequestError("connection", f"no URL, since the function for it failed: {error!r}", 0) from error

    async def refresh() -> tuple[str, ...]:
        return await ask(anew=True)

    ends_at = asyncio.get_running_loop().time() + patience_s
    while not (urls := await ask(anew=False)):
        # An app whose replicas are being replaced.
        if asyncio.get_running_loop().time() >= ends_at:
            raise RequestError("connection", f"no server: the function for URLs gave none within {patience_s:g} s", 0)
        await asyncio.sleep(_LOOK_AGAIN_S)
    return common.endpoints(url if callable(url) else cache, urls, refresh)


def _checked(urls: Urls | None) -> tuple[str, ...]:
    found = tuple(_server(one.rstrip("/")) for one in ([urls] if isinstance(urls, str) else urls or ()) if one)
    if len({one.startswith(GRPC) for one in found}) > 1:
        raise _refused(
            "url", ", ".join(found), "some servers are asked by HTTP and some by gRPC", "give those of one kind"
        )
    return found


def _server(url: str) -> str:
    if url.startswith(_HTTP):
        return url
    if (by_grpc := _HOST_AND_PORT.fullmatch(url)) is None:
        raise _refused(
            "url", url, "neither an HTTP URL nor one for gRPC", f"give http://HOST:PORT/v1 or {GRPC}HOST:PORT"
        )
    return GRPC + by_grpc[1]


def _refused(key: str, value: object, what: str, hint: str) -> ConfigError:
    return ConfigError([Problem(key, value, what, hint)], "The request can't be made.")
