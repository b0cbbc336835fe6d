"""Which replica the next request goes to."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from matrix.errors import MatrixError

_LOG = logging.getLogger(__name__)

_COOL_DOWN_S = 5.0
_REFRESH_EVERY_S = 1.0
_REFRESH_TIMEOUT_S = 10.0

Refresh = Callable[[], Awaitable[Sequence[str]]]


@dataclass(eq=False, slots=True)
class Endpoint:
    """One replica.

    Attributes:
        url: Its base URL, up to and including `/v1`.
        outstanding: Requests that it is working on for us.
        avoid_until: Time (`time.monotonic`) until which another one is taken if there is one.
    """

    url: str
    outstanding: int = 0
    avoid_until: float = 0.0


class Endpoints:
    """The replicas of one app: the one with the least outstanding requests is next, in turn among equals.

    Args:
        urls: Base URLs, each up to and including `/v1`; at least one.
        refresh: Returns the URLs as they are now. Asked after connection failures: once for all that fail together,
            and at most once a second. May raise a MatrixError, OSError or TimeoutError: the set stays as it is.
    """

    def __init__(self, urls: Sequence[str], refresh: Refresh | None = None) -> None:
        if not urls:
            raise ValueError("at least one endpoint is needed")
        self._endpoints: list[Endpoint] = []
        self._turn = 0
        self._ask = refresh
        self._asked_at = -_REFRESH_EVERY_S
        self._asking: asyncio.Task[None] | None = None
        self.replace(urls)

    def __len__(self) -> int:
        return len(self._endpoints)

    @property
    def urls(self) -> list[str]:
        """The base URLs of the set."""
        return [endpoint.url for endpoint in self._endpoints]

    def pick(self, avoid: Collection[str] = ()) -> Endpoint:
        """Take an endpoint for one request; give it back with `release`.

        Args:
            avoid: URLs to leave out as long as there is another one.
        """
        now = time.monotonic()
        count = len(self._endpoints)
        start = self._turn % count
        in_turn = (self._endpoints[(start + step) % count] for step in range(count))
        best = min(in_turn, key=lambda one: (one.url in avoid, one.avoid_until > now, one.outstanding))
        self._turn = self._endpoints.index(best) + 1
        best.outstanding += 1
        return best

    def release(self, endpoint: Endpoint) -> None:
        """Give back what `pick` gave."""
        endpoint.outstanding -= 1

    @contextmanager
    def lease(self, avoid: Collection[str] = ()) -> Iterator[Endpoint]:
        """`pick` and `release` around one request."""
        endpoint = self.pick(avoid)
        try:
            yield endpoint
        finally:
            self.release(endpoint)

    def replace(self, urls: Sequence[str]) -> None:
        """Make these the set; those that stay keep their counts. No URLs: the set stays, as nothing better is known."""
        if urls:
            known = {endpoint.url: endpoint for endpoint in self._endpoints}
            names = dict.fromkeys(url.rstrip("/") for url in urls)
            self._endpoints = [known.get(url) or Endpoint(url) for url in names]

    async def failed(self, endpoint: Endpoint) -> None:
        """Tell that an endpoint could not be reached: it is avoided for some seconds, and the set is refreshed."""
        endpoint.avoid_until = time.monotonic() + _COOL_DOWN_S
        if self._ask is None:
            return
        if self._asking is None:
            if time.monotonic() - self._asked_at < _REFRESH_EVERY_S:
                return
            self._asked_at = time.monotonic()
            self._asking = asyncio.create_task(self._refresh(self._ask))
        # Shielded: the one that waits may be cancelled, the others still want the answer.
        await asyncio.shield(self._asking)

    async def _refresh(self, ask: Refresh) -> None:
        try:
            async with asyncio.timeout(_REFRESH_TIMEOUT_S):
                self.replace(await ask())
        except (MatrixError, OSError, TimeoutError) as error:
            _LOG.warning("Endpoints could not be refreshed, they stay as they are: %r", error)
        finally:
            self._asking = None
