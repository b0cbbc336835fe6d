"""Connections: how a session is made, and the one that all requests of an event loop share."""

from __future__ import annotations

import asyncio
import atexit
import math
import resource
from collections.abc import AsyncGenerator, Callable, Hashable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import aiohttp

from matrix.client.endpoints import Endpoints, Refresh
from matrix.client.flights import Flights

if TYPE_CHECKING:
    from matrix.client.grpc import Channels

_CONNECT_TIMEOUT_S = 10.0
# uvicorn, and vLLM with it, closes a connection after 5 idle seconds: let go earlier, or a request runs into the close.
_KEEP_ALIVE_S = 4.0
_REMEMBERED = 64
"""Sets of servers whose state an event loop keeps: those asked last."""


def open_session() -> aiohttp.ClientSession:
    """A session that never makes a request wait; needs a running event loop, and has to be closed there."""
    allow_many_connections()
    return aiohttp.ClientSession(
        # A gate decides how much is in flight, not the pool.
        connector=aiohttp.TCPConnector(limit=0, limit_per_host=0, keepalive_timeout=_KEEP_ALIVE_S),
        # aiohttp's own total is 5 minutes; ours is the deadline of the row.
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
    )


class Shared:
    """What the requests of one event loop have in common: connections, and what is known of the servers.

    Attributes:
        session: Closed with the loop; nobody else may close it.
        flights: All their rows.
    """

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session
        self.flights = Flights()
        self._servers: dict[Hashable, Endpoints] = {}
        self._channels: Channels | None = None

    def channels(self, make: Callable[[], Channels]) -> Channels:
        """Connections to servers that are asked by gRPC; made by the first one who needs them, closed with the loop."""
        if self._channels is None:
            self._channels = make()
        return self._channels

    async def close(self) -> None:
        """Close what was opened beside the session."""
        if self._channels is not None:
            await self._channels.close()

    def endpoints(self, key: Hashable, urls: Sequence[str], refresh: Refresh | None = None) -> Endpoints:
        """The servers that a key stands for, with the state that they are in.

        Args:
            key: The URLs themselves, or whatever names them.
            urls: What they are now.
            refresh: As for `Endpoints`; only the first caller's counts.
        """
        found = self._servers.pop(key, None)
        if found is None:
            # How long to wait for servers that nobody reaches is up to each request.
            found = Endpoints(urls, refresh, first_contact_s=math.inf)
        elif set(found.urls) != set(urls):
            found.replace(urls)
        self._servers[key] = found
        if len(self._servers) > _REMEMBERED:
            # Requests under way keep it for themselves until they end.
            del self._servers[next(iter(self._servers))]
        return found


_Owner = AsyncGenerator[Shared, None]

_owners: dict[asyncio.AbstractEventLoop, tuple[_Owner, Shared]] = {}


async def shared() -> Shared:
    """What the running event loop's requests share; made by the first one, and closed with the loop.

    A generator owns it, since asynchronous generators are what a loop itself ends before it closes (`asyncio.run`,
    `asyncio.Runner` and every framework that calls `shutdown_asyncgens` see to that).
    """
    loop = asyncio.get_running_loop()
    known = _owners.get(loop)
    if known is None:
        _close_left(exiting=False)
        owner = _until_the_loop_ends(loop)
        # Gets to its `yield` without a wait, so that nobody comes in between.
        known = _owners[loop] = (owner, await anext(owner))
    return known[1]


async def _until_the_loop_ends(loop: asyncio.AbstractEventLoop) -> _Owner:
    async with open_session() as session:
        held = Shared(session)
        try:
            yield held
        finally:
            _owners.pop(loop, None)
            await held.close()


def _close_left(*, exiting: bool = True) -> None:
    """Close what belongs to loops that were closed without ending their generators, or never were until the exit."""
    for loop, (owner, held) in list(_owners.items()):
        if loop.is_closed():
            del _owners[loop]
            # Nothing can be waited for on a closed loop, and aiohttp doesn't: it ends with the first step.
            with suppress(StopIteration):
                held.session.close().send(None)
        elif exiting and not loop.is_running():
            loop.run_until_complete(owner.aclose())


atexit.register(_close_left)


def allow_many_connections() -> None:
    """Raise the soft limit of open files, often 1,024, to the hard one: a connection is a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
