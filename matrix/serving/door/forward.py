"""One request to a replica and its answer back, with another try where that is safe."""

from __future__ import annotations

import asyncio
import io
import logging
import time
from typing import Any, NamedTuple

import aiohttp
from yarl import URL

from matrix.client.sessions import open_session
from matrix.client.tries import TryFailedError, from_error, seconds
from matrix.serving.backend import ApiError
from matrix.serving.door.pool import Pool, Taken
from matrix.serving.door.routes import replica_name, root_of
from matrix.serving.door.wire import BrokenOffError, ClientGoneError, Receive, Send, sent_back

_LOG = logging.getLogger(__name__)

MAX_TRIES = 3
# Another replica may do better: it is broken, or says that it is (or what is behind it).
FAULTS = frozenset({500, 502, 503, 504})
TOO_MANY = 429
HOLD_S = 1.0
"""A replica that refuses for its load without a `Retry-After` is left alone for so long."""
_READ_WHOLE = 1 << 20
"""An answer of up to so many bytes is read before any of it is sent on: one that breaks off can be asked for again."""
_WRITE_WHOLE = 1 << 20
_REMEMBERED = 4096
# aiohttp would add its own; what the client sent is enough.
_NO_HEADERS = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")


class Call(NamedTuple):
    """A request as it goes to a replica.

    Attributes:
        method: HTTP's.
        path: Path and query, as it goes behind the replica's root, percent-encoded.
        headers: All of them.
        body: May be empty.
        affinity: Requests with the same one go to the same replica, if there is room.
        deadline: When it stops waiting for a replica, by `time.monotonic`.
    """

    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes
    affinity: str | None
    deadline: float


class Forwarder:
    """Sends requests on to the replicas of apps; has to be made in the event loop."""

    def __init__(self) -> None:
        self._session = open_session()
        self._places: dict[str, tuple[str, bytes]] = {}

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def forward(self, pool: Pool, call: Call, receive: Receive, send: Send) -> int:
        """Answer a request. When the client goes away, so does the request to the replica.

        Returns:
            The status that the client got.

        Raises:
            ApiError: None of the answer was sent, and none of the replicas can give one.
            ClientGoneError: Nobody is there to be answered.
            BrokenOffError: The answer broke off after some of it was sent on.
        """
        task = asyncio.current_task()
        assert task is not None  # noqa: S101
        watch = _Watch(task, receive)
        try:
            return await self._until_answered(pool, call, send)
        except asyncio.CancelledError:
            if not watch.client_gone:
                raise
            task.uncancel()
            raise ClientGoneError from None
        finally:
            watch.stop()

    async def _until_answered(self, pool: Pool, call: Call, send: Send) -> int:
        tried: set[str] = set()
        faults = 0
        following: Taken | None = None
        while True:
            taken = following or pool.pick(call.affinity, tried) or await pool.take(call.affinity, tried, call.deadline)
            tried.add(taken.replica.url)
            following = None
            sent_at = time.monotonic()
            reply: aiohttp.ClientResponse | None = None
            try:
                reply = await self._ask(taken, call)
                if reply.status in FAULTS or reply.status == TOO_MANY:
                    faults += 1
                    _refused(taken, reply, sent_at)
                    if faults < MAX_TRIES:
                        following = another(pool, call.affinity, tried)
                else:
                    taken.owner.succeeded(taken.replica)
                if following is None:
                    await self._send_back(taken, reply, send)
                    return reply.status
            except aiohttp.ClientError as error:
                failure = from_error(taken.replica.url, error)
                _failed(taken, failure, sent_at)
                # Without a connection nothing was sent: that may be tried until the deadline.
                faults += failure.verdict != "unreachable"
                if faults >= MAX_TRIES or failure.verdict == "refusal":
                    raise ApiError(502, str(failure)) from error
            except BrokenOffError as error:
                taken.owner.failed(taken.replica, sent_at, str(error))
                raise
            finally:
                # Nothing is left to close after an answer that was read to its end.
                if reply is not None:
                    reply.close()
                pool.release(taken)

    async def _ask(self, taken: Taken, call: Call) -> aiohttp.ClientResponse:
        return await self._session.request(
            call.method,
            URL(self._place(taken)[0] + call.path, encoded=True),
            # aiohttp writes what can be read in pieces, and so lets others have their turn.
            data=io.BytesIO(call.body) if len(call.body) > _WRITE_WHOLE else call.body or None,
            headers=call.headers,
            skip_auto_headers=_NO_HEADERS,
            allow_redirects=False,
            auto_decompress=False,
        )

    async def _send_back(self, taken: Taken, reply: aiohttp.ClientResponse, send: Send) -> None:
        content = reply.content
        length = reply.content_length
        whole = length is not None and length <= _READ_WHOLE
        part = await (reply.read() if whole else content.readany())
        headers = sent_back(reply.raw_headers, self._place(taken)[1])
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        if not whole:
            try:
                while part:
                    await send({"type": "http.response.body", "body": part, "more_body": True})
                    part = await content.readany()
            except aiohttp.ClientError as error:
                raise BrokenOffError(str(from_error(taken.replica.url, error))) from error
        await send({"type": "http.response.body", "body": part})

    def _place(self, taken: Taken) -> tuple[str, bytes]:
        """A replica's root, and its name in `x-matrix-replica`."""
        url = taken.replica.url
        place = self._places.get(url)
        if place is None:
            if len(self._places) >= _REMEMBERED:
                self._places.clear()
            place = self._places[url] = (root_of(url), replica_name(url).encode())
        return place


class _Watch:
    """Cancels a task when the client goes away."""

    def __init__(self, task: asyncio.Task[Any], receive: Receive) -> None:
        self.client_gone = False
        self._task = task
        self._watching = asyncio.get_running_loop().create_task(self._watch(receive))

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.client_gone = True
        self._task.cancel()

    def stop(self) -> None:
        self._watching.cancel()


def another(pool: Pool, affinity: str | None, tried: set[str]) -> Taken | None:
    """A replica that wasn't tried yet; None if none is ready."""
    taken = pool.pick(affinity, tried)
    if taken is not None and taken.replica.url in tried:
        pool.release(taken)
        return None
    return taken


def _refused(taken: Taken, reply: aiohttp.ClientResponse, sent_at: float) -> None:
    """Note an answer that says that the replica is broken, or has too much to do."""
    wait_s = seconds(reply.headers.get("Retry-After"))
    # As for the client: without `Retry-After`, 503 comes from proxies whose server is gone.
    if reply.status == TOO_MANY or (reply.status == 503 and wait_s):
        taken.owner.succeeded(taken.replica)
        taken.owner.hold(taken.replica, wait_s or HOLD_S)
    else:
        taken.owner.failed(taken.replica, sent_at, f"{taken.replica.url}: HTTP {reply.status} {reply.reason}")


def _failed(taken: Taken, failure: TryFailedError, sent_at: float) -> None:
    """Note that a replica can't be reached, or that its answer broke off."""
    _LOG.info("%s", failure)
    taken.owner.failed(taken.replica, sent_at, str(failure), unreachable=failure.verdict == "unreachable")
