"""Where requests wait until they may be sent: asyncio around the pure states of `concurrency` and `rates`."""

from __future__ import annotations

import asyncio
import time
from collections import deque

from matrix.client.concurrency import AdaptiveLimit
from matrix.client.rates import Rates

_UNLIMITED = 1_000_000

_Waiter = tuple[asyncio.Future[float], float]
"""Told the time when it is let in; the tokens it will cost."""


class GateClosedError(Exception):
    """No more requests are let in."""


class Gate:
    """Lets requests in as the limits allow: in the order in which they came, those that were in before ahead of others.

    After `enter` comes one of `succeeded`, `refused` and `leave`. All are O(1); a wait may be cancelled at any time.

    Args:
        limit: How many may be in; None: any number.
        rates: How many per minute.
    """

    def __init__(self, limit: AdaptiveLimit | None = None, rates: Rates | None = None) -> None:
        self.limit = limit or AdaptiveLimit(start=_UNLIMITED, minimum=_UNLIMITED, maximum=_UNLIMITED)
        self._rates = rates
        self._again: deque[_Waiter] = deque()
        self._new: deque[_Waiter] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def counts_tokens(self) -> bool:
        """Whether `enter` needs to know the tokens."""
        return self._rates is not None and self._rates.counts_tokens

    @property
    def is_closed(self) -> bool:
        """Whether nobody is let in any more but those that were in before."""
        return self._closed

    @property
    def waiting(self) -> int:
        """Requests that wait to be let in."""
        return sum(not future.done() for queue in (self._again, self._new) for future, _ in queue)

    def opens_in_s(self) -> float:
        """Seconds for which a server asked to send nothing; 0 if it is open."""
        return max(0.0, self.limit.paused_until - time.monotonic())

    async def enter(self, tokens: float = 0.0, *, again: bool = False) -> float:
        """Wait until one more may be sent.

        Args:
            tokens: What it will cost.
            again: It was in before, so its deadline is running: it goes before those that weren't.

        Returns:
            When it was let in (`time.monotonic`), for `succeeded` and `refused`.

        Raises:
            GateClosedError: The gate is closed, or was while this one waited; those that were in before aren't refused.
        """
        now = time.monotonic()
        if self._closed and not again:
            raise GateClosedError
        if not self._again and (again or not self._new) and self._fits(now, tokens):
            return self._let_in(now, tokens)
        future: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        (self._again if again else self._new).append((future, tokens))
        self._let_in_more(now)
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                if self._rates:
                    self._rates.take_back(time.monotonic(), tokens)
                self.leave()
            else:
                # It may have been the one that all others wait behind.
                self._let_in_more(time.monotonic())
            raise

    def succeeded(self, entered_at: float, estimated: float = 0.0, used: float = 0.0) -> None:
        """Leave with an answer.

        Args:
            entered_at: What `enter` said.
            estimated: Tokens as they were given to `enter`.
            used: Tokens by the server's count.
        """
        now = time.monotonic()
        self.limit.succeeded(now, entered_at)
        if estimated and self._rates:
            self._rates.correct(now, estimated, used)
        self._let_in_more(now)

    def refused(self, entered_at: float, retry_after_s: float = 0.0, estimated: float = 0.0) -> None:
        """Leave without an answer since the server has too much to do: less is let in, and nothing for some time."""
        now = time.monotonic()
        self.limit.refused(now, entered_at, retry_after_s)
        if estimated and self._rates:
            self._rates.correct(now, estimated, 0.0)
        self._let_in_more(now)

    def leave(self) -> None:
        """Leave in any other way."""
        now = time.monotonic()
        self.limit.dropped(now)
        self._let_in_more(now)

    def close(self) -> None:
        """Let nobody in any more but those that were in before."""
        self._closed = True
        for future, _ in self._new:
            if not future.done():
                future.set_exception(GateClosedError())
        self._new.clear()

    def _fits(self, now: float, tokens: float) -> bool:
        return self.limit.admits(now) and (self._rates is None or not self._rates.wait_s(now, tokens))

    def _let_in(self, now: float, tokens: float) -> float:
        if self._rates:
            self._rates.spend(now, tokens)
        self.limit.started(now)
        return now

    def _let_in_more(self, now: float) -> None:
        while queue := self._again or self._new:
            future, tokens = queue[0]
            if not future.done():
                if not self._fits(now, tokens):
                    self._come_back(now, tokens)
                    return
                future.set_result(self._let_in(now, tokens))
            queue.popleft()

    def _come_back(self, now: float, tokens: float) -> None:
        """See to it that the first one is looked at again when time alone would let it in."""
        wait_s = self.limit.paused_until - now
        if self._rates:
            wait_s = max(wait_s, self._rates.wait_s(now, tokens))
        if wait_s <= 0 or self.limit.in_flight >= self.limit.limit:
            return
        loop = asyncio.get_running_loop()
        # A loop's clock may run a millisecond behind ours: not too early, or it looks in vain.
        at = loop.time() + wait_s + 0.002
        if self._timer is None or self._timer.when() > at + 0.01:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = loop.call_at(at, self._look_again)

    def _look_again(self) -> None:
        self._timer = None
        self._let_in_more(time.monotonic())
