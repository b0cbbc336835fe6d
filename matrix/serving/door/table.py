"""The apps that there are, by name and by model."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from matrix.serving.backend import ApiError
from matrix.serving.door.pool import Pool
from matrix.serving.door.routes import RESERVED, AppRoute, NodeRoute, Routes


class App:
    """An app.

    Attributes:
        route: What the door was told last.
        http: Its replicas.
        grpc: Those of them that take gRPC.
        in_flight: Requests waiting or under way.
    """

    def __init__(self, route: AppRoute) -> None:
        self.in_flight = 0
        self.http = Pool(route.name)
        self.grpc = Pool(route.name)
        self._used_at = time.monotonic()
        self.update(route)

    @property
    def name(self) -> str:
        """Its name."""
        return self.route.name

    @property
    def waiting(self) -> int:
        """Requests that have no replica yet."""
        return self.http.waiting + self.grpc.waiting

    @property
    def idle_s(self) -> float:
        """Seconds since its last request ended; 0 while there are some."""
        return 0.0 if self.in_flight else time.monotonic() - self._used_at

    def update(self, route: AppRoute) -> None:
        """Take over what the door is told."""
        self.route = route
        self.http.update(route.urls, route.failed)
        self.grpc.update(route.grpc_urls, route.failed)

    def remove(self) -> None:
        """The app is gone: refuse what still waits. Requests under way may end."""
        for pool in (self.http, self.grpc):
            pool.refuse(ApiError(404, f"app {self.name!r} has been removed"))

    def enter(self) -> None:
        """A request has come."""
        self.in_flight += 1

    def leave(self) -> None:
        """It has been answered, or given up."""
        self.in_flight -= 1
        self._used_at = time.monotonic()


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
