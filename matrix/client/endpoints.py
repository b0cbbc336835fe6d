"""Which replica the next request goes to."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from hashlib import blake2b
from itertools import repeat
from operator import attrgetter, xor

from matrix.client.breaker import FIRST_OPEN_S, Breaker
from matrix.errors import MatrixError

_LOG = logging.getLogger(__name__)

_REFRESH_GAP_S = 1.0
_REFRESH_TIMEOUT_S = 10.0

_SPILL_FLOOR = 4
"""Up to here a replica isn't loaded: an engine decodes a handful of requests together at nearly the cost of one."""
_SPILL_FACTOR = 1.5
"""Times the mean that the preferred replica may have outstanding. With consistent hashing and bounded loads (Mirrokni,
Thorup, Zadimoghaddam 2016, arXiv:1608.01350) a bound c times the mean moves a key that is over it O(1/(c-1)^2) times:
1.25 to 2 are in use (HAProxy's `hash-balance-factor` recommends 125 to 200)."""

_ONE = 1 << 48
"""One outstanding request in `Endpoint.rank`; below it is the turn."""

Refresh = Callable[[], Awaitable[Sequence[str]]]


class NobodyAnswersError(Exception):
    """No replica of the set ever answered."""


class Endpoint:
    """One replica.

    Attributes:
        url: Its base URL, up to and including `/v1`.
        breaker: What keeps requests away while it fails.
        held_until: The replica itself asked to be left alone until then (`Retry-After`).
        rank: The least is next: outstanding requests, and among equals whose turn is the longest ago.
        seed: A number that stands for its URL.
    """

    __slots__ = ("breaker", "held_until", "rank", "seed", "url")

    def __init__(self, url: str) -> None:
        self.url = url
        self.breaker = Breaker()
        self.held_until = 0.0
        self.rank = 0
        self.seed = _number(url)

    @property
    def outstanding(self) -> int:
        """Requests that it is working on for us."""
        return self.rank >> 48

    def opens_at(self) -> float:
        """When a request may go there again."""
        return max(self.breaker.until if self.breaker.open_s else 0.0, self.held_until)


_RANK = attrgetter("rank")
_SEED = attrgetter("seed")


class Endpoints:
    """The replicas of one app: the one with the least outstanding requests is next, in turn among equals.

    A replica that fails is left alone by its circuit breaker (see `Breaker`). When no breaker lets a request through
    the front door is taken, if there is one; then a replica that answers, though badly; otherwise `take` waits, and
    says so in the log.

    Args:
        urls: Base URLs, each up to and including `/v1`; at least one.
        refresh: Returns the URLs as they are now. Asked in the background after a failure, at most once a second, and
            regularly; has 10 s to answer. If it raises a MatrixError, OSError or TimeoutError the set stays.
        refresh_every_s: How often it is asked without a failure: a replica that was replaced comes back at another
            address, and those that are left don't fail.
        fallback: Base URL of a front door that reaches all replicas.
        first_contact_s: How long `take` waits for a set of which no replica ever answered: more likely a wrong URL than
            an engine that starts again.
        clock: Seconds; for tests.
    """

    def __init__(
        self,
        urls: Sequence[str],
        refresh: Refresh | None = None,
        *,
        refresh_every_s: float = 30.0,
        fallback: str | None = None,
        first_contact_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not urls:
            raise ValueError("at least one endpoint is needed")
        self._clock = clock
        self._fallback = Endpoint(fallback.rstrip("/")) if fallback else None
        self._first_contact_s = first_contact_s
        self._answered = False
        self._failing_since: float | None = None
        self._why = ""
        self._turn = self._outstanding = 0
        self._ask = refresh
        self._is_stale = False
        self._ask_every_s = refresh_every_s
        self._asked_at = clock()
        self._asking: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._alarm: asyncio.TimerHandle | None = None
        self._all: list[Endpoint] = []
        self._usable: list[Endpoint] = []
        self._shut: list[Endpoint] = []
        self._due_at = 0.0
        self.replace(urls)

    def __len__(self) -> int:
        return len(self._all)

    @property
    def urls(self) -> list[str]:
        """The base URLs of the set."""
        return [endpoint.url for endpoint in self._all]

    @property
    def last_failure(self) -> str:
        """What the last failure said; empty if there was none."""
        return self._why

    def pick(self, affinity: str | None = None, avoid: Collection[str] = ()) -> Endpoint | None:
        """Take an endpoint for one request; give it back with `release`.

        Args:
            affinity: Requests with the same key go to the same replica (and find their prefix in its cache), unless it
                has more than 4 and more than 1.5 times the mean outstanding: then to the least loaded.
            avoid: URLs to leave out as long as there is another one.

        Returns:
            None if no breaker lets a request through, and the front door, if there is one, doesn't either.
        """
        now = self._clock()
        if self._ask is not None and now - self._asked_at > self._ask_every_s:
            self._refresh(now, self._ask)
        if now >= self._due_at and (probe := self._open_again(now, avoid)):
            return self._taken(probe)
        usable = self._usable
        if avoid:
            usable = [endpoint for endpoint in usable if endpoint.url not in avoid] or usable
        if not usable:
            return self._front_door(now) or self._last_resort(now)
        if len(usable) == 1:
            return self._taken(usable[0])
        if affinity is not None:
            preferred = _preferred(usable, affinity)
            mean = self._outstanding / len(usable)
            if preferred.outstanding <= max(_SPILL_FLOOR, _SPILL_FACTOR * mean):
                return self._taken(preferred)
        return self._taken(min(usable, key=_RANK))

    async def take(self, affinity: str | None = None, avoid: Collection[str] = ()) -> Endpoint:
        """`pick`, waiting until a breaker lets the request through or the set changes. The caller limits the wait.

        Raises:
            NobodyAnswersError: No replica ever answered, for `first_contact_s` now.
        """
        while (endpoint := self.pick(affinity, avoid)) is None:
            now = self._clock()
            if not self._answered and now >= self._gives_up_at():
                raise NobodyAnswersError(f"no server answered within {self._first_contact_s:g} s: {self._why}")
            if self._alarm is None:
                wait_s = (self._due_at if self._answered else min(self._due_at, self._gives_up_at())) - now
                # A loop's clock may run a millisecond behind ours: not too early, or all wake for nothing.
                self._alarm = asyncio.get_running_loop().call_later(max(wait_s, 0.0) + 0.002, self._tell)
            self._news.clear()
            await self._news.wait()
        return endpoint

    def release(self, endpoint: Endpoint) -> None:
        """Give back what `pick` or `take` gave."""
        endpoint.rank -= _ONE
        self._outstanding -= 1

    def succeeded(self, endpoint: Endpoint) -> None:
        """Tell that an endpoint answered sensibly, a refusal included."""
        self._answered = True
        breaker = endpoint.breaker
        if breaker.failures:
            was_open = breaker.open_s
            breaker.succeeded()
            if was_open:
                _LOG.info("%s answers again", endpoint.url)
                self._sort()

    def failed(self, endpoint: Endpoint, sent_at: float, why: str, *, unreachable: bool = False) -> None:
        """Tell that an endpoint failed: its breaker may open, and the set is refreshed in the background.

        Args:
            endpoint: Which one.
            sent_at: When the request was sent, by `time.monotonic`.
            why: For the log and for who waits in vain.
            unreachable: The request didn't get as far as the endpoint.
        """
        now = self._clock()
        self._why = why
        if not unreachable:
            self._answered = True
        elif self._failing_since is None:
            self._failing_since = now
        if endpoint.breaker.failed(now, sent_at, unreachable=unreachable):
            self._sort()
            if endpoint.breaker.open_s == FIRST_OPEN_S:
                left = f"{len(self._usable)} of {len(self)} replicas left" if self._usable else "there is no other one"
                _LOG.warning("%s is left alone for a while (%s): %s", endpoint.url, left, why)
        if self._ask is not None and now - self._asked_at >= _REFRESH_GAP_S:
            self._refresh(now, self._ask)

    def hold(self, endpoint: Endpoint, seconds: float) -> bool:
        """Leave an endpoint alone for some seconds, as it asked for, provided that there is another one.

        Returns:
            Whether there is; without, nothing is changed.
        """
        if not any(other is not endpoint for other in self._usable):
            return False
        endpoint.held_until = max(endpoint.held_until, self._clock() + seconds)
        self._sort()
        return True

    def replace(self, urls: Sequence[str]) -> None:
        """Make these the set; those that stay keep their state. No URLs: the set stays, as nothing better is known."""
        if urls:
            known = {endpoint.url: endpoint for endpoint in self._all}
            names = dict.fromkeys(url.rstrip("/") for url in urls)
            self._all = [known.get(url) or Endpoint(url) for url in names]
            self._sort()

    async def close(self) -> None:
        """End what goes on in the background."""
        if self._alarm is not None:
            self._alarm.cancel()
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    def _taken(self, endpoint: Endpoint) -> Endpoint:
        self._turn += 1
        self._outstanding += 1
        endpoint.rank = (endpoint.outstanding + 1 << 48) + self._turn
        return endpoint

    def _open_again(self, now: float, avoid: Collection[str]) -> Endpoint | None:
        """Reopen what was held long enough; an endpoint whose breaker wants a probe is the answer."""
        self._sort()
        due = [endpoint for endpoint in self._shut if endpoint.opens_at() <= now]
        probe = next((endpoint for endpoint in due if endpoint.url not in avoid), None)
        if probe is None and due and not self._usable:
            probe = due[0]
        if probe is not None:
            probe.breaker.probe(now)
            self._sort()
        return probe

    def _front_door(self, now: float) -> Endpoint | None:
        door = self._fallback
        if door is None or now < door.opens_at():
            return None
        if door.breaker.open_s:
            door.breaker.probe(now)
            self._sort()
        return self._taken(door)

    def _last_resort(self, now: float) -> Endpoint | None:
        """One that answers, though badly: there is no better one, and who asks waits longer after each failure."""
        some = [one for one in self._shut if one.breaker.open_s and not one.breaker.unreachable]
        some = [one for one in some if one.held_until <= now]
        return self._taken(min(some, key=_RANK)) if some else None

    def _sort(self) -> None:
        """Part the set into those that take requests and those that don't for now; only after a change."""
        now = self._clock()
        self._usable = [one for one in self._all if not one.breaker.open_s and one.held_until <= now]
        self._shut = [one for one in self._all if one.breaker.open_s or one.held_until > now]
        doors = [self._fallback] if self._fallback and self._fallback.breaker.open_s else []
        self._due_at = min((one.opens_at() for one in (*self._shut, *doors)), default=float("inf"))
        self._tell()

    def _tell(self) -> None:
        """Wake all that wait in `take`: each looks for itself."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self._news.set()

    def _gives_up_at(self) -> float:
        return (self._clock() if self._failing_since is None else self._failing_since) + self._first_contact_s

    def _refresh(self, now: float, ask: Refresh) -> None:
        self._asked_at = now
        if self._asking is None:
            self._asking = asyncio.get_running_loop().create_task(self._refreshed(ask))

    async def _refreshed(self, ask: Refresh) -> None:
        try:
            async with asyncio.timeout(_REFRESH_TIMEOUT_S):
                self.replace(await ask())
            self._is_stale = False
        except (MatrixError, OSError, TimeoutError) as error:
            # It is asked again each second: said once.
            level = logging.DEBUG if self._is_stale else logging.WARNING
            _LOG.log(level, "Endpoints could not be refreshed, they stay as they are: %r", error)
            self._is_stale = True
        finally:
            self._asking = None


def _preferred(endpoints: Sequence[Endpoint], key: str) -> Endpoint:
    """The endpoint for a key by rendezvous hashing: one that goes away or comes moves only the keys that it has."""
    # All in C: this is looked at for each replica and request. A tuple's hash of an int is the same in all processes
    # (PYTHONHASHSEED is for text), but it is nearly linear: only the exclusive or before it makes a fair choice.
    weights = list(map(hash, zip(map(xor, map(_SEED, endpoints), repeat(_number(key))))))
    return endpoints[weights.index(max(weights))]


def _number(text: str) -> int:
    """A number for a text, the same in every process."""
    return int.from_bytes(blake2b(text.encode(), digest_size=7).digest())
