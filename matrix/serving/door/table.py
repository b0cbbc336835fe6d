"""The apps that there are, and which replica of an app the next request goes to."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from matrix.client.endpoints import Endpoint, Endpoints
from matrix.serving.backend import ApiError
from matrix.serving.door.routes import RESERVED, AppRoute, NodeRoute, Routes

_LOOK_S = 0.1
"""How often replicas that are left alone for a while are looked at for requests that wait."""
_RETRY_AFTER_S = 5.0


class Taken(NamedTuple):
    """A replica that works on a request; give it back with `App.release`."""

    replica: Endpoint
    owner: Endpoints


class _Waiter(NamedTuple):
    future: asyncio.Future[Taken]
    affinity: str | None
    avoid: Collection[str]


class App:
    """An app: its replicas, and the requests that wait for one.

    Attributes:
        route: What the door was told last.
        in_flight: Requests waiting or under way.
    """

    def __init__(self, route: AppRoute) -> None:
        self.route = route
        self.in_flight = 0
        self._replicas: Endpoints | None = None
        self._waiters: dict[int, _Waiter] = {}
        self._arrived = 0
        self._alarm: asyncio.TimerHandle | None = None
        self._used_at = time.monotonic()
        self.update(route)

    @property
    def name(self) -> str:
        """Its name."""
        return self.route.name

    @property
    def waiting(self) -> int:
        """Requests that have no replica yet."""
        return len(self._waiters)

    @property
    def idle_s(self) -> float:
        """Seconds since its last request ended; 0 while there are some."""
        return 0.0 if self.in_flight else time.monotonic() - self._used_at

    def update(self, route: AppRoute) -> None:
        """Take over what the door is told; requests that waited for a replica get it now."""
        self.route = route
        if not route.urls:
            self._replicas = None
        elif self._replicas is None:
            # How long to wait for replicas that nobody reaches is up to each request.
            self._replicas = Endpoints(route.urls, first_contact_s=math.inf)
        elif set(self._replicas.urls) != {url.rstrip("/") for url in route.urls}:
            self._replicas.replace(route.urls)
        self._hand_out()

    def remove(self) -> None:
        """The app is gone: refuse what still waits. Requests under way may end."""
        for waiter in self._waiters.values():
            if not waiter.future.done():
                waiter.future.set_exception(ApiError(404, f"app {self.name!r} has been removed"))

    def enter(self) -> None:
        """A request has come."""
        self.in_flight += 1

    def leave(self) -> None:
        """It has been answered, or given up."""
        self.in_flight -= 1
        self._used_at = time.monotonic()

    def pick(self, affinity: str | None = None, avoid: Collection[str] = ()) -> Taken | None:
        """Take the best replica; None if there is none that takes requests now. See `Endpoints.pick`."""
        replica = self._replicas.pick(affinity, avoid) if self._replicas is not None else None
        return None if replica is None or self._replicas is None else Taken(replica, self._replicas)

    async def take(self, affinity: str | None, avoid: Collection[str], deadline: float) -> Taken:
        """`pick`, waiting for a replica until `deadline`, by `time.monotonic`; first come, first served.

        Raises:
            ApiError: 503, none came; or 404, the app was removed.
        """
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
            return f"app {self.name!r} has no replica that is ready"
        return f"no replica of app {self.name!r} can be reached: {self._replicas.last_failure}"


class Table:
    """All apps, by name and by model.

    Attributes:
        apps: By name.
        nodes: The cluster's nodes.
    """

    def __init__(self) -> None:
        self.apps: dict[str, App] = {}
        self.nodes: Iterable[NodeRoute] = ()
        self._by_model: dict[str, App] = {}

    def update(self, routes: Routes) -> None:
        """Take over what the door is told: all apps that there are.

        Raises:
            ApiError: 400 for a name that no app can have, or that two have; nothing is changed.
        """
        names = [route.name for route in routes.apps]
        if wrong := sorted({name for name in names if name in RESERVED or names.count(name) > 1}):
            raise ApiError(400, f"no app can be called {', '.join(wrong)}, or two are")
        self.nodes = routes.nodes
        for name in self.apps.keys() - set(names):
            self.apps.pop(name).remove()
        for route in routes.apps:
            known = self.apps.get(route.name)
            if known is None:
                self.apps[route.name] = App(route)
            else:
                known.update(route)
        # Of several apps of one model the one that has been there longest is meant by the model's name, so that an app
        # that is added takes no requests away.
        self._by_model = {}
        for app in self.apps.values():
            for model in (app.route.model, *app.route.models):
                self._by_model.setdefault(model, app)

    def by_name(self, name: str) -> App:
        """The app of a name.

        Raises:
            ApiError: 404, with the names that there are.
        """
        app = self.apps.get(name)
        if app is None:
            raise ApiError(404, f"there is no app {name!r}; there is {_listed(self.apps)}")
        return app

    def by_model(self, model: str) -> App:
        """The app that `model` in a request means: its own name, or that of its model.

        Raises:
            ApiError: 404, with the names that there are.
        """
        app = self.apps.get(model) or self._by_model.get(model)
        if app is None:
            known = dict.fromkeys((*self.apps, *self._by_model))
            raise ApiError(404, f"there is no model {model!r}; there is {_listed(known)}")
        return app

    def only(self) -> App | None:
        """The one app, if there is no other one."""
        return next(iter(self.apps.values())) if len(self.apps) == 1 else None

    def models(self) -> dict[str, Any]:
        """The answer to `GET /v1/models`: for each app a name that means it."""
        data = []
        for app in self.apps.values():
            own = self._by_model.get(app.route.model) is app
            shown = {"id": app.route.model if own else app.name, "object": "model", "created": 0}
            data.append({**shown, "owned_by": "matrix", "root": app.route.model, "app": app.name})
        return {"object": "list", "data": data}

    def demand(self) -> dict[str, Any]:
        """What autoscaling has to know: requests waiting or under way, those waiting, and seconds without any."""
        apps = self.apps.values()
        return {
            "demand": {app.name: app.in_flight for app in apps},
            "waiting": {app.name: app.waiting for app in apps},
            "idle_s": {app.name: app.idle_s for app in apps},
        }


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none yet"
