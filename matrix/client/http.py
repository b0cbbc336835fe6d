"""Chat completions over HTTP from any server with OpenAI's API: one session, retries, and a deadline for each row."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Self

import aiohttp
import orjson

from matrix.client.endpoints import Endpoint, Endpoints
from matrix.client.parse import error_message, parse_chat
from matrix.data.rows import Response
from matrix.errors import RequestError

_CONNECT_TIMEOUT_S = 10.0
# uvicorn, and vLLM with it, closes a connection after 5 idle seconds: let go earlier, or a request runs into the close.
_KEEP_ALIVE_S = 4.0


class _TryFailedError(Exception):
    """One try failed.

    Attributes:
        kind: As in RequestError.
        again: Another try may mend it.
        retry_after_s: What the server asks to wait.
    """

    def __init__(self, kind: str, message: str, *, again: bool = True, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.kind = kind
        self.again = again
        self.retry_after_s = retry_after_s


class ChatClient:
    """Client of one model; an async context manager, for one event loop.

    Args:
        endpoints: The servers. A try that failed is repeated on another one where there is one.
        api_key: Sent as bearer token; None: no such header.
        timeout_s: Deadline of a row, all tries and the waits between them included.
        max_attempts: Tries per row, the first included.
        try_timeout_s: Limit of one try, so that a row can leave a server that hangs; None: the row's deadline alone.
        backoff_s: Wait before the second try; it doubles with each try, and chance takes up to a half of it away.
        max_backoff_s: No wait is longer, even if the server's `Retry-After` asks for it.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        *,
        api_key: str | None,
        timeout_s: float,
        max_attempts: int,
        try_timeout_s: float | None = None,
        backoff_s: float = 0.5,
        max_backoff_s: float = 60.0,
    ) -> None:
        self._endpoints = endpoints
        self._timeout_s = timeout_s
        self._max_attempts = max_attempts
        self._try_timeout_s = try_timeout_s
        self._backoff_s = backoff_s
        self._max_backoff_s = max_backoff_s
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key.strip()}"

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            # The caller decides how much is in flight: the pool must never make a request wait.
            connector=aiohttp.TCPConnector(limit=0, limit_per_host=0, keepalive_timeout=_KEEP_ALIVE_S),
            # aiohttp's own total is 5 minutes; ours is the deadline of the row.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._headers,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def chat(self, body: Mapping[str, Any]) -> Response:
        """Send a chat completion request and wait for the whole answer.

        Connection errors, tries that took too long, 429, 5xx and answers that can't be read are tried again; any other
        refusal is final.

        Args:
            body: The request as the server gets it: nothing is added, nothing left out.

        Raises:
            RequestError: It failed for good. Its kind: `connection`, `timeout`, `bad_response`, `http_<status>`, or
                `bad_request` for a body that isn't JSON.
        """
        try:
            payload = orjson.dumps(dict(body))
        except TypeError as error:
            raise RequestError("bad_request", f"the request can't be written as JSON: {error}", attempts=0) from error
        deadline = time.monotonic() + self._timeout_s
        tried: set[str] = set()
        attempt = 0
        last: _TryFailedError | None = None
        try:
            async with asyncio.timeout(self._timeout_s):
                while True:
                    attempt += 1
                    try:
                        return await self._try(payload, attempt, tried)
                    except _TryFailedError as failure:
                        last = failure
                    if not last.again or attempt >= self._max_attempts:
                        raise RequestError(last.kind, str(last), attempt) from last
                    wait_s = self._wait_s(attempt, last.retry_after_s)
                    if time.monotonic() + wait_s >= deadline:
                        late = f"{last} (no time for another try within {self._timeout_s:g} s)"
                        raise RequestError(last.kind, late, attempt) from last
                    await asyncio.sleep(wait_s)
        except TimeoutError as error:
            before = f"; before that {last.kind}: {last}" if last else ""
            message = f"no answer within {self._timeout_s:g} s (try {attempt} of {self._max_attempts}{before})"
            raise RequestError("timeout", message, attempt) from error

    async def _try(self, payload: bytes, attempt: int, tried: set[str]) -> Response:
        with self._endpoints.lease(avoid=tried) as endpoint:
            tried.add(endpoint.url)
            started = time.perf_counter()
            raw = await self._post(endpoint, payload)
            latency_s = time.perf_counter() - started
        try:
            return parse_chat(raw, latency_s=latency_s, endpoint=endpoint.url, attempts=attempt)
        except ValueError as error:
            raise _TryFailedError("bad_response", f"{endpoint.url}: the answer can't be read: {error}") from error

    async def _post(self, endpoint: Endpoint, payload: bytes) -> bytes:
        """Bytes of the body of an answer that says OK."""
        url = endpoint.url
        try:
            async with (
                asyncio.timeout(self._try_timeout_s),
                self._session.post(f"{url}/chat/completions", data=payload, allow_redirects=False) as reply,
            ):
                raw = await reply.read()
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
            raise _TryFailedError("connection", f"not a URL to connect to: {error}", again=False) from error
        # ClientResponseError: what came back isn't even HTTP.
        except (aiohttp.ClientPayloadError, aiohttp.ClientResponseError) as error:
            raise _TryFailedError("bad_response", f"{url}: the answer broke off: {error}") from error
        except aiohttp.ClientError as error:
            await self._endpoints.failed(endpoint)
            raise _TryFailedError("connection", f"{url}: {error}") from error
        except TimeoutError as error:
            raise _TryFailedError("timeout", f"{url}: no answer within {self._try_timeout_s:g} s") from error
        status = reply.status
        if 200 <= status < 300:
            return raw
        raise _TryFailedError(
            f"http_{status}",
            f"{url}: HTTP {status} {reply.reason or ''}".rstrip() + f": {error_message(raw)}",
            again=status == 429 or status >= 500,
            retry_after_s=_seconds(reply.headers.get("Retry-After")),
        )

    def _wait_s(self, attempt: int, retry_after_s: float) -> float:
        """Seconds before the try after this one. Chance spreads what failed together, also after a `Retry-After`."""
        backoff_s = self._backoff_s * 2.0 ** min(attempt - 1, 20) * random.uniform(0.5, 1)  # noqa: S311
        return min(retry_after_s + backoff_s, self._max_backoff_s)


def _seconds(retry_after: str | None) -> float:
    """`Retry-After` in seconds, given as a number or a date (RFC 9110, 10.2.3); 0 without one that makes sense."""
    if retry_after is None:
        return 0.0
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0
