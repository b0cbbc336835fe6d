"""Which models a server has."""

from __future__ import annotations

import asyncio

import aiohttp
import orjson

from matrix.client.sessions import open_session
from matrix.client.transport import GRPC, check_grpc
from matrix.client.tries import from_error, from_status
from matrix.errors import RequestError

_NO_SUCH_PATH = (404, 405, 501)


async def served_models(url: str, api_key: str | None, timeout_s: float = 30) -> list[str] | None:
    """Names of the models that a server lists.

    Args:
        url: Its base URL, up to and including `/v1`; or `grpc://HOST:PORT`.
        api_key: Sent as bearer token; None: no such header.
        timeout_s: Seconds until it is given up.

    Returns:
        The names; None if the server answers and has no such list.

    Raises:
        RequestError: It can't be reached, or refuses.
        ConfigError: It would have to be asked by gRPC, which isn't installed.
    """
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key.strip()}"}
    try:
        if url.startswith(GRPC):
            check_grpc("url", url)
            from matrix.client import grpc

            async with asyncio.timeout(timeout_s):
                return await grpc.served_models(url, headers)
        async with (
            asyncio.timeout(timeout_s),
            open_session() as session,
            session.get(f"{url}/models", headers=headers) as reply,
        ):
            raw = await reply.read()
    except aiohttp.ClientError as error:
        failure = from_error(url, error)
        raise RequestError(failure.kind, str(failure)) from error
    except TimeoutError as error:
        raise RequestError("timeout", f"{url}: no answer within {timeout_s:g} s") from error
    if reply.status in _NO_SUCH_PATH:
        return None
    if not reply.ok:
        failure = from_status(url, reply.status, reply.reason, reply.headers, raw)
        raise RequestError(failure.kind, str(failure))
    try:
        return [str(model["id"]) for model in orjson.loads(raw)["data"]]
    except (ValueError, TypeError, KeyError):
        return None
