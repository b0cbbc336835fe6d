"""What became of one try: errors of aiohttp and answers that don't say OK, sorted by what is to be done about them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal

import aiohttp

from matrix.client.parse import error_message

_LONGEST_RETRY_AFTER_S = 3600.0
"""A server that asks for more is asked again after this."""

Verdict = Literal["refusal", "crowd", "fault", "unreachable"]


class TryFailedError(Exception):
    """One try failed.

    Attributes:
        kind: As in RequestError.
        verdict: Whose fault it is, and what follows:

            - `refusal`: the request's own (400, 401, 404, ...). It is final.
            - `crowd`: too many requests (429, or 503 with `Retry-After`: without it, 503 comes from proxies whose
              server is gone). Fewer are sent; the request waits, and the try doesn't count against `max_attempts`.
            - `fault`: the replica's (other 5xx, a time-out, a connection that broke, an answer that can't be read).
              The try counts, the next one goes to another replica.
            - `unreachable`: there was no connection, so the request wasn't sent and the try doesn't count.
        retry_after_s: What the server asks to wait; 0 if it doesn't say.
    """

    def __init__(self, kind: str, message: str, verdict: Verdict, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.kind = kind
        self.verdict = verdict
        self.retry_after_s = retry_after_s


def from_status(url: str, status: int, reason: str | None, headers: Mapping[str, str], raw: bytes) -> TryFailedError:
    """Sort an answer whose status isn't 2xx."""
    retry_after_s = seconds(headers.get("Retry-After"))
    # OpenAI says 429 also when the account has no money left: no wait will change that.
    broke = status == 429 and b"insufficient_quota" in raw
    if (status == 429 and not broke) or (status == 503 and retry_after_s):
        verdict: Verdict = "crowd"
    # 408: the server waited too long for the request (RFC 9110, 15.5.9).
    elif status == 408 or status >= 500:
        verdict = "fault"
    else:
        verdict = "refusal"
    message = f"{url}: HTTP {status} {reason or ''}".rstrip() + f": {error_message(raw)}"
    return TryFailedError(f"http_{status}", message, verdict, retry_after_s)


def from_error(url: str, error: aiohttp.ClientError) -> TryFailedError:
    """Sort an error of aiohttp."""
    if isinstance(error, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError):
        return TryFailedError("connection", f"not a URL to connect to: {error}", "refusal")
    # ClientResponseError: what came back isn't even HTTP.
    if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ClientResponseError):
        return TryFailedError("bad_response", f"{url}: the answer broke off: {error}", "fault")
    if isinstance(error, aiohttp.ClientSSLError):
        return TryFailedError("connection", f"{url}: {error}", "refusal")
    none_there = isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
    return TryFailedError("connection", f"{url}: {error}", "unreachable" if none_there else "fault")


def seconds(retry_after: str | None) -> float:
    """`Retry-After` in seconds, given as a number or a date (RFC 9110, 10.2.3); 0 without one that makes sense."""
    if retry_after is None:
        return 0.0
    try:
        wait_s = float(retry_after)
    except ValueError:
        try:
            wait_s = (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return 0.0
    # Written so that nan is 0, too.
    return min(wait_s, _LONGEST_RETRY_AFTER_S) if wait_s > 0 else 0.0
