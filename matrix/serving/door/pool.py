"""The replicas of an app that take one protocol, and the requests that wait for one of them."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Collection, Sequence
from typing import NamedTuple

from matrix.client.endpoints import Endpoint, Endpoints
from matrix.serving.backend import ApiError

_LOOK_S = 0.1
"""How often replicas that are left alone for a while are looked at for requests that wait."""
_RETRY_AFTER_S = 5.0


class Taken(NamedTuple):
    """A replica that works on a request; give it back with `Pool.release`."""

    replica: Endpoint
    owner: Endpoints


class _Waiter(NamedTuple):
    future: asyncio.Future[Taken]
    affinity: str | None
    avoid: Collection[str]


class Pool:
    """A set of replicas that may be empty for a while.

    Args:
        app: Name of the app, for messages.
    """

    def __init__(self, app: str) -> None:
        self._app = app
        self._replicas: Endpoints | None = None
        self._failed: ApiError | None = None
        self._waiters: dict[int, _Waiter] = {}
        self._arrived = 0
        self._alarm: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """Requests that have no replica yet."""
        return len(self._waiters)

    def update(self, urls: Sequence[str], failed: str | None = None) -> None:
        """Make these the set; requests that waited for a replica get it now.

        Args:
            urls: The replicas.
            failed: Why there is none, and none will come: nobody waits for one.
        """
        self._failed = ApiError(503, f"app {self._app!r} has failed: {failed}") if failed else None
        if self._failed is not None:
            self.refuse(self._failed)
        if not urls:
            self._replicas = None
        elif self._replicas is None:
            # How long to wait for replicas that nobody reaches is up to each request.
            self._replicas = Endpoints(urls, first_contact_s=math.inf)
        elif set(self._replicas.urls) != {url.rstrip("/") for url in urls}:
            self._replicas.replace(urls)
        self._hand_out()

    def refuse(self, error: ApiError) -> None:
        """Refuse what waits."""
        for waiter in self._waiters.values():
            if not waiter.future.done():
                waiter.future.set_exception(error)

    def pick(self, affinity: str | None = None, avoid: Collection[str] = ()) -> Taken | None:
        """Take the best replica; None if there is none that takes requests now. See `Endpoints.pick`."""
        replica = self._replicas.pick(affinity, avoid) if self._replicas is not None else None
        return None if replica is None or self._replicas is None else Taken(replica, self._replicas)

    async def take(self, affinity: str | None, avoid: Collection[str], deadline: float) -> Taken:
        """`pick`, waiting for a replica until `deadline`, by `time.monotonic`; first come, first served.

        Raises:
            ApiError: 503, none came or the app has failed; or 404, the app was removed.
        """
        if self._failed is not None:
            raise self._failed
        future: asyncio.Future[Taken] = asyncio.get_running_loop().create_future()
        self._arrived = place = self._arrived + 1
        self._waiters[place] = _Waiter(future, affinity, avoid)
        self._look_later()
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await future
        except BaseException as error:
            # It may have got one in the same turn of the loop in which it was given up.
            if future.done() and not future.cancelled() and future.exception() is None:
                self.release(future.result())
            if isinstance(error, TimeoutError):
                raise ApiError(503, self._why_none(), retry_after_s=_RETRY_AFTER_S) from None
            raise
        finally:
            del self._waiters[place]

    def release(self, taken: Taken) -> None:
        """Give back what `pick` or `take` gave."""
        taken.owner.release(taken.replica)

    def _hand_out(self) -> None:
        """Give replicas to the requests that wait, in the order in which they came."""
        for waiter in self._waiters.values():
            if waiter.future.done():
                continue
            taken = self.pick(waiter.affinity, waiter.avoid)
            if taken is None:
                break
            waiter.future.set_result(taken)
        self._look_later()

    def _look_later(self) -> None:
        # Without replicas nothing changes until the door is told of some.
        if self._alarm is None and self._waiters and self._replicas is not None:
            self._alarm = asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        self._alarm = None
        self._hand_out()

    def _why_none(self) -> str:
        if self._replicas is None:
            return f"app {self._app!r} has no replica that is ready"
        return f"no replica of app {self._app!r} can be reached: {self._replicas.last_failure}"
