"""Requests to any server with OpenAI's API, by HTTP or gRPC: limits, retries, and a deadline for each row."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine, Mapping
from types import TracebackType
from typing import Any, Self

from matrix.client.endpoints import Endpoint, Endpoints, NobodyAnswersError
from matrix.client.flights import Flight, Flights
from matrix.client.gate import Gate
from matrix.client.images import parts_of, with_images
from matrix.client.parse import Origin, Parse, parse_chat, parse_completion, parse_embeddings, parse_execution
from matrix.client.rates import estimate_tokens
from matrix.client.sessions import Shared
from matrix.client.transport import open_transport
from matrix.client.tries import TryFailedError
from matrix.data.rows import Response
from matrix.errors import RequestError

_HOLD_S = 1.0
"""A replica that refuses without saying for how long is left alone for this, if there are others."""


Asked = Coroutine[Any, Any, Response]


class ModelClient:
    """Client of one model; an async context manager, for one event loop.

    A row has `timeout_s` from the moment when it is first let through the gate: what waits for its turn isn't late. In
    that time it is tried until it is answered, refused for good, or `max_attempts` tries have failed. Two kinds of
    tries don't count, so that only the deadline ends them: those that a server was too busy for (429, or 503 with
    `Retry-After`), which wait at the gate without holding a place; and those that reached no server at all, since an
    engine that restarts for a minute must not cost rows. They go to another replica; where there is none they wait for
    one, and the first that is let through a breaker tells the others. But a set of which nobody ever answered is given
    up after `Endpoints.first_contact_s`.

    Args:
        endpoints: The servers, all with HTTP URLs or all with gRPC ones (`grpc://HOST:PORT`). A try that failed is
            repeated on another one where there is one.
        api_key: Sent as bearer token; None: no such header.
        timeout_s: Deadline of a row, all tries and the waits between them included.
        max_attempts: Tries per row that may fail.
        try_timeout_s: Limit of one try, so that a row can leave a server that hangs; None: the row's deadline alone.
        gate: How many requests at a time, and per minute; None: as many as are asked for.
        backoff_s: Wait before the second try; it grows with each try, and chance takes up to a half of it away.
        backoff_factor: By how much it grows.
        max_backoff_s: No wait that isn't asked for by a server is longer.
        patience_s: Seconds for which a row may be turned away, or reach no server, in one go; None: its deadline alone.
        headers: More of them, for every request.
        shared: Whose connections are used; its owner closes them, and the endpoints. None: the client has its own.

    Attributes:
        gate: Where requests wait for their turn.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        *,
        api_key: str | None,
        timeout_s: float,
        max_attempts: int,
        try_timeout_s: float | None = None,
        gate: Gate | None = None,
        backoff_s: float = 0.5,
        backoff_factor: float = 2.0,
        max_backoff_s: float = 60.0,
        patience_s: float | None = None,
        headers: Mapping[str, str] | None = None,
        shared: Shared | None = None,
    ) -> None:
        self.gate = gate or Gate()
        self._endpoints = endpoints
        self._timeout_s = timeout_s
        self._max_attempts = max_attempts
        self._try_timeout_s = float("inf") if try_timeout_s is None else try_timeout_s
        self._backoff_s = backoff_s
        self._backoff_factor = backoff_factor
        self._max_backoff_s = max_backoff_s
        self._patience_s = float("inf") if patience_s is None else patience_s
        self._shared = shared
        self._headers = dict(headers or {})
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key.strip()}"
        self._flights = shared.flights if shared else Flights()

    async def __aenter__(self) -> Self:
        self._transport = open_transport(self._endpoints.urls[0], self._headers, self._shared)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shared is None:
            await self._endpoints.close()
        await self._transport.close()

    def chat(
        self, body: Mapping[str, Any], *, affinity: str | None = None, label: str = "", begun: bool = False
    ) -> Asked:
        """Send a chat completion request and wait for the whole answer.

        Args:
            body: The request as the server gets it: nothing is added, nothing left out. An image that is a file of this
                machine becomes a `data:` URL.
            affinity: Requests with the same key go to the same replica as long as that isn't overloaded.
            label: What `in_flight` calls it.
            begun: It belongs to work that was let in before: it goes before others, and isn't turned away.

        Raises:
            GateClosedError: The gate was closed before the request was let in: nothing was sent.
            RequestError: It failed for good. Its kind: `connection`, `timeout`, `bad_response`, `http_<status>`,
                `stalled` (see `give_up`), or `bad_request` for a body that can't be sent.
        """
        return self._ask("/chat/completions", parse_chat, body, affinity, label, begun=begun)

    def complete(self, body: Mapping[str, Any], *, affinity: str | None = None, label: str = "") -> Asked:
        """Send a text completion request; see `chat`."""
        return self._ask("/completions", parse_completion, body, affinity, label)

    def embed(self, body: Mapping[str, Any], *, affinity: str | None = None, label: str = "") -> Asked:
        """Ask for the embeddings of `body["input"]`; see `chat`."""
        return self._ask("/embeddings", parse_embeddings, body, affinity, label)

    def execute(
        self, body: Mapping[str, Any], *, affinity: str | None = None, label: str = "", begun: bool = False
    ) -> Asked:
        """Have a program run by an app with `engine=sandbox`; see `chat`.

        Args:
            body: Fields of `matrix.sandbox.execution.Execution`.
            affinity: As for `chat`.
            label: As for `chat`.
            begun: As for `chat`.

        Returns:
            In `executed` what came of it. A program that fails is an answer, too, not an error.
        """
        return self._ask("/execute", parse_execution, body, affinity, label, begun=begun)

    @property
    def landed_at(self) -> float:
        """When a row last got its answer or error (`time.monotonic`)."""
        return self._flights.landed_at

    def in_flight(self) -> list[Flight]:
        """The rows under way, the oldest first. They go on changing: look, and let go."""
        return self._flights.list()

    def give_up(self, flight: Flight, why: str) -> None:
        """End a row with a RequestError of the kind `stalled` and this message; its server is taken for faulty."""
        self._flights.give_up(flight, why)

    async def _ask(
        self,
        path: str,
        parse: Parse,
        body: Mapping[str, Any],
        affinity: str | None,
        label: str,
        *,
        begun: bool = False,
    ) -> Response:
        try:
            parts = parts_of(body)
            sent = await with_images(body, parts) if parts else body
            payload = self._transport.encode(path, sent if isinstance(sent, dict) else dict(sent))
        except OSError as error:
            raise RequestError("bad_request", f"an image can't be read: {error}", attempts=0) from error
        except (TypeError, ValueError) as error:
            raise RequestError("bad_request", f"the request can't be sent as JSON: {error}", attempts=0) from error
        tokens = estimate_tokens(body) if self.gate.counts_tokens else 0.0
        flight = Flight(path, parse, payload, affinity=affinity, label=label, tokens=tokens, begun=begun)
        try:
            return await self._until_answered(flight)
        finally:
            self._flights.land(flight)

    async def _until_answered(self, flight: Flight) -> Response:
        wait_s = 0.0
        while True:
            flight.due = flight.deadline
            try:
                if wait_s:
                    await asyncio.sleep(wait_s)
                return await self._try(flight)
            except TryFailedError as failure:
                wait_s = self._after(flight, failure)
            except NobodyAnswersError as error:
                raise RequestError("connection", str(error), flight.attempt) from error
            except asyncio.CancelledError as error:
                if not flight.is_late():
                    raise
                wait_s = self._after_time_out(flight, error)

    async def _try(self, flight: Flight) -> Response:
        entered_at = await self.gate.enter(flight.tokens, again=flight.begun or flight.task is not None)
        endpoint: Endpoint | None = None
        try:
            if flight.task is None:
                self._flights.start(flight, self._timeout_s)
            endpoint = self._endpoints.pick(flight.affinity, flight.tried)
            if endpoint is None:
                endpoint = await self._take(flight)
                self.gate.limit.disturbed()
            try:
                response = await self._send(flight, endpoint)
            finally:
                flight.phase = "waiting"
                self._endpoints.release(endpoint)
        except TryFailedError as failure:
            if (
                endpoint
                and failure.verdict == "crowd"
                and not self._endpoints.hold(endpoint, failure.retry_after_s or _HOLD_S)
            ):
                self.gate.refused(entered_at, failure.retry_after_s, flight.tokens)
            else:
                self.gate.leave()
            raise
        except BaseException:
            self.gate.leave()
            raise
        self._endpoints.succeeded(endpoint)
        used = response.usage.get("total_tokens") or 0.0 if flight.tokens else 0.0
        self.gate.succeeded(entered_at, flight.tokens, used)
        return response

    async def _take(self, flight: Flight) -> Endpoint:
        """Wait for an endpoint, as long as the row has patience."""
        flight.due = min(flight.deadline, self._patience_ends_at(flight))
        try:
            return await self._endpoints.take(flight.affinity, flight.tried)
        except asyncio.CancelledError as error:
            if flight.due < flight.deadline and not flight.given_up and flight.is_late():
                raise TryFailedError("connection", self._endpoints.last_failure, "unreachable") from error
            raise

    def _patience_ends_at(self, flight: Flight) -> float:
        flight.away_since = min(flight.away_since, time.monotonic())
        return flight.away_since + self._patience_s

    async def _send(self, flight: Flight, endpoint: Endpoint) -> Response:
        url = flight.endpoint = endpoint.url
        flight.tried.add(url)
        flight.attempt += 1
        flight.phase = "sent"
        flight.sent_at = sent_at = time.monotonic()
        flight.due = min(flight.deadline, sent_at + self._try_timeout_s)
        try:
            answer = await self._transport.ask(url, flight.path, flight.payload)
            return flight.parse(answer, Origin(time.monotonic() - sent_at, url, flight.attempt))
        except ValueError as error:
            failure = TryFailedError("bad_response", f"{url}: the answer can't be read: {error}", "fault")
            failure.__cause__ = error
        except TryFailedError as error:
            failure = error
        except asyncio.CancelledError:
            if flight.late:
                self._endpoints.failed(endpoint, sent_at, f"{url}: no answer for {time.monotonic() - sent_at:.0f} s")
            raise
        if failure.verdict in {"fault", "unreachable"}:
            self._endpoints.failed(endpoint, sent_at, str(failure), unreachable=failure.verdict == "unreachable")
        elif failure.kind != "connection":
            self._endpoints.succeeded(endpoint)
        raise failure

    def _after(self, flight: Flight, failure: TryFailedError) -> float:
        """Seconds to wait before the next try.

        Raises:
            RequestError: There is none.
        """
        flight.last = failure
        if failure.verdict == "fault":
            flight.faults += 1
            flight.away_since = float("inf")
        if failure.verdict == "refusal" or flight.faults >= self._max_attempts:
            raise RequestError(failure.kind, str(failure), flight.attempt) from failure
        wait_s = 0.0
        if failure.verdict == "fault":
            wait_s = self._backoff(flight.faults)
        elif failure.verdict == "crowd":
            wait_s = max(0.0 if failure.retry_after_s else self._backoff(flight.attempt), self.gate.opens_in_s())
        if failure.verdict != "fault" and time.monotonic() + wait_s >= self._patience_ends_at(flight):
            raise RequestError(failure.kind, str(failure), flight.attempt) from failure
        if time.monotonic() + wait_s >= flight.deadline:
            late = f"{failure} (no time for another try within {self._timeout_s:g} s)"
            raise RequestError(failure.kind, late, flight.attempt) from failure
        # The gate itself keeps what it is closed for, so that nobody comes late when it opens.
        return wait_s if failure.verdict == "fault" or not failure.retry_after_s else 0.0

    def _after_time_out(self, flight: Flight, error: asyncio.CancelledError) -> float:
        """The same for a clock that ran out: that of the row, which ends it, or that of the try."""
        if flight.given_up:
            raise RequestError("stalled", flight.given_up, flight.attempt) from error
        if flight.due < flight.deadline:
            message = f"{flight.endpoint}: no answer within {self._try_timeout_s:g} s"
            return self._after(flight, TryFailedError("timeout", message, "fault"))
        before = f"; before that {flight.last.kind}: {flight.last}" if flight.last else ""
        message = f"no answer within {self._timeout_s:g} s (try {flight.attempt}, {flight.faults} failed{before})"
        raise RequestError("timeout", message, flight.attempt) from error

    def _backoff(self, failed: int) -> float:
        """Seconds before the try after so many that failed; chance spreads what failed together."""
        longest_s = min(self._backoff_s * self._backoff_factor ** min(failed - 1, 20), self._max_backoff_s)
        return longest_s * random.uniform(0.5, 1)  # noqa: S311
