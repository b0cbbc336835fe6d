"""Who may run: a queue in order of arrival before a number of places and a KV cache, as in front of an engine."""

from __future__ import annotations

import asyncio
from collections import deque

from matrix.serving.backend import ApiError


class Admission:
    """Lets requests run in order of arrival, each as soon as there is a place and room in the cache.

    A request takes the room of its prompt and its whole answer when it begins, and gives it back at its end. Nothing
    overtakes, not even what would fit.

    Args:
        places: Requests that run at a time; None: no limit.
        room: Tokens that the cache holds; None: no limit.
    """

    def __init__(self, places: int | None, room: int | None) -> None:
        self._places, self._room = places, room
        self._running = self._used = 0
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return sum(not future.done() for _, future in self._queue)

    @property
    def usage(self) -> float:
        """Share of the cache that is taken, 0 to 1; 0 without a limit."""
        return self._used / self._room if self._room else 0.0

    async def enter(self, tokens: int) -> None:
        """Wait for a place and for so much of the cache; they are held until `leave`.

        Raises:
            ApiError: 400, for a request that is larger than the whole cache.
        """
        if self._room is not None and tokens > self._room:
            raise ApiError(400, f"{tokens} tokens of prompt and answer don't fit in a KV cache of {self._room}.")
        if self._queue or not self._fits(tokens):
            await self._wait(tokens)
        else:
            self._begin(tokens)

    def leave(self, tokens: int) -> None:
        """Give both back, with the same number of tokens."""
        self._running -= 1
        self._used -= tokens
        if self._queue:
            self._admit()

    async def _wait(self, tokens: int) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._queue.append((tokens, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                # It may have been what kept the others waiting.
                self._admit()
            else:
                self.leave(tokens)
            raise

    def _fits(self, tokens: int) -> bool:
        has_place = self._places is None or self._running < self._places
        return has_place and (self._room is None or self._used + tokens <= self._room)

    def _begin(self, tokens: int) -> None:
        self._running += 1
        self._used += tokens

    def _admit(self) -> None:
        queue = self._queue
        while queue:
            tokens, turn = queue[0]
            if not turn.done():
                if not self._fits(tokens):
                    return
                self._begin(tokens)
                turn.set_result(None)
            queue.popleft()
