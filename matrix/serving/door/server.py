"""The ASGI application: who may come in, and where each path leads."""

from __future__ import annotations

import hmac
import ipaddress
import math
import time
from urllib.parse import unquote

import orjson
from pydantic import ValidationError

from matrix.serving.backend import ApiError
from matrix.serving.door.figures import Figures
from matrix.serving.door.forward import Call, Forwarder
from matrix.serving.door.routes import Routes
from matrix.serving.door.scrape import Scraper
from matrix.serving.door.table import App, Table
from matrix.serving.door.wire import (
    BrokenOffError,
    ClientGoneError,
    Receive,
    Scope,
    Send,
    read_body,
    refuse,
    respond,
    respond_json,
    sent_on,
)

WAIT_S = 600.0
"""How long a request waits for a replica, unless its `x-request-timeout` says otherwise."""

_GONE = 499
"""What nginx calls it when a client goes away before its answer; only for the figures."""
_BROKEN_OFF = 502
_PAGE = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")


class Door:
    """The application; has to be made in the event loop.

    Args:
        key: What clients send as a bearer token, and replicas get.
        control_key: What the program that tells of apps sends instead.

    Attributes:
        table: The apps.
        figures: What is counted about requests.
    """

    def __init__(self, key: str, control_key: str) -> None:
        self.table = Table()
        self.figures = Figures()
        self._key = key
        self._secret, self._control_secret = key.encode(), control_key.encode()
        self._forwarder = Forwarder()
        self._scraper = Scraper(key, self.figures)

    async def close(self) -> None:
        """Close the connections to replicas."""
        await self._forwarder.close()
        await self._scraper.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            await self._answer(scope, receive, send)
        except ApiError as error:
            await refuse(send, error)
        except (ClientGoneError, BrokenOffError):
            # The server closes the connection, which is all that can be told to the client.
            return

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: bytes = scope["raw_path"]
        first, _, rest = path[1:].partition(b"/")
        name = unquote(first.decode("latin-1"))
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if name == "health" and not rest:
            await respond_json(send, {"status": "ok"})
        elif rest == b"health":
            await self._health(name, send)
        elif name == "control":
            await self._control(rest, scope, headers, receive, send)
        elif not _bears(headers, self._secret):
            raise ApiError(401, "the key is missing or wrong: send it as 'Authorization: Bearer KEY'")
        elif name == "metrics" and not rest:
            nodes = b"nodes=0" not in scope["query_string"].split(b"&")
            await respond(send, 200, await self._scraper.page(self.table, nodes=nodes), [_PAGE])
        elif path == b"/v1/models" and scope["method"] == "GET":
            await respond_json(send, self.table.models())
        elif name == "v1":
            app, body = self._by_model(await read_body(receive, headers))
            await self._pass_on(app, path, scope, headers, body, receive, send)
        else:
            app = self.table.by_name(name)
            body = _with_model(app, await read_body(receive, headers))
            await self._pass_on(app, b"/" + rest, scope, headers, body, receive, send)

    async def _pass_on(
        self,
        app: App,
        target: bytes,
        scope: Scope,
        headers: dict[bytes, bytes],
        body: bytes,
        receive: Receive,
        send: Send,
    ) -> None:
        started_at = time.monotonic()
        query: bytes = scope["query_string"]
        affinity = headers.get(b"x-session-id") or headers.get(b"serve_multiplexed_model_id")
        call = Call(
            method=scope["method"],
            path=(target + b"?" + query if query else target).decode("latin-1"),
            headers=sent_on(scope["headers"], self._key),
            body=body,
            affinity=affinity.decode("latin-1") if affinity else None,
            deadline=started_at + _wait_s(headers),
        )
        status: int = _GONE
        app.enter()
        try:
            status = await self._forwarder.forward(app.http, call, receive, send)
        except ApiError as error:
            status = error.status
            raise
        except BrokenOffError:
            status = _BROKEN_OFF
            raise
        finally:
            app.leave()
            self.figures.count(app.name, str(status), time.monotonic() - started_at)

    async def _health(self, name: str, send: Send) -> None:
        app = self.table.apps.get(name)
        if app is None:
            # Without a key nobody is told which apps there are.
            raise ApiError(404, f"there is no app {name!r}")
        ready = len(app.route.urls)
        if not ready and app.route.min_replicas:
            raise ApiError(503, f"app {name!r} has no replica that is ready")
        await respond_json(send, {"status": "ok", "replicas": ready})

    async def _control(
        self, rest: bytes, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send
    ) -> None:
        if not _is_local(scope):
            raise ApiError(403, "only the program that started the front door, on its own machine, may do this")
        if not _bears(headers, self._control_secret):
            raise ApiError(401, "the control key is missing or wrong")
        if rest != b"routes" or scope["method"] != "PUT":
            raise ApiError(404, "there is only PUT /control/routes")
        try:
            routes = Routes.model_validate_json(await read_body(receive, headers))
        except ValidationError as error:
            raise ApiError(400, str(error)) from error
        self.table.update(routes)
        await respond_json(send, {"version": routes.version, **self.table.demand()})

    def _by_model(self, body: bytes) -> tuple[App, bytes]:
        """The app that a request to `/v1/...` is for, and the body with the name that its replicas know."""
        only = self.table.only()
        if not body and only is not None:
            return only, body
        request = _object(body)
        model = request.get("model")
        if model is None and only is not None:
            return only, body
        if not isinstance(model, str):
            raise ApiError(400, "the request names no 'model'; or use /APP/v1/... instead of /v1/...")
        app = self.table.by_model(model)
        if model == app.name != app.route.model:
            body = orjson.dumps(request | {"model": app.route.model})
        return app, body


def _with_model(app: App, body: bytes) -> bytes:
    """The body of a request to an app's own address: as it is, unless it gives the app's name as that of the model."""
    if app.name == app.route.model or app.name.encode() not in body:
        return body
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body
    if not isinstance(request, dict) or request.get("model") != app.name:
        return body
    return orjson.dumps(request | {"model": app.route.model})


def _object(body: bytes) -> dict[str, object]:
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"the request isn't JSON ({error}); other kinds go to /APP/v1/...") from error
    if not isinstance(request, dict):
        raise ApiError(400, "the request isn't a JSON object")
    return request


def _is_local(scope: Scope) -> bool:
    """Whether a connection comes from this machine."""
    client, server = scope.get("client"), scope.get("server")
    if client is None or server is None:
        return False
    # Who connects to an address of the own machine does so from that address.
    return client[0] == server[0] or ipaddress.ip_address(client[0].removeprefix("::ffff:")).is_loopback


def _bears(headers: dict[bytes, bytes], secret: bytes) -> bool:
    kind, _, given = headers.get(b"authorization", b"").partition(b" ")
    return kind.lower() == b"bearer" and hmac.compare_digest(given.strip(), secret)


def _wait_s(headers: dict[bytes, bytes]) -> float:
    given = headers.get(b"x-request-timeout")
    if given is None:
        return WAIT_S
    try:
        wait_s = float(given)
    except ValueError:
        wait_s = math.nan
    if not 0 <= wait_s < math.inf:
        raise ApiError(400, "x-request-timeout is a number of seconds")
    return wait_s
