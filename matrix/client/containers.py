"""Containers of an app, on lease: `ContainerClient` asks for them, `Container` is one; docs/containers.md."""

from __future__ import annotations

import asyncio
import base64
import logging
import random
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, cast

import orjson

from matrix.client.endpoints import Endpoint, Endpoints, NobodyAnswersError
from matrix.client.sessions import Shared
from matrix.client.transport import GRPC, HttpTransport
from matrix.client.tries import TryFailedError
from matrix.errors import ConfigError, Problem, RequestError

Json = dict[str, Any]

_TURN_S = 10.0
"""How long one try waits in a replica's queue: another replica may have a place by then."""
_MARGIN_S = 30.0
"""What an answer may take beyond the command's own time-out."""
_CALL_S = 120.0
"""What all calls may take that run no command of the caller's."""
_SIGN_S = 20.0
"""What giving back, or a sign of life, may take; a lease that isn't given back ends by itself."""
_PATIENCE_S = 15.0
"""For how long a container's replica may not be reached before the container is taken for lost; a tenth of what the
answer may take, if that is less."""
_LONGEST_WAIT_S = 5.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ran:
    """What came of a command.

    Attributes:
        exit_code: As a shell gives it (128 + N for signal N); None if it took too long.
        output: What it wrote to stdout and stderr, in that order in which it did; stdout alone if `apart`.
        stderr: Empty unless `apart`.
        timed_out: Whether it was ended since it took too long.
        cut: Bytes that are missing in the middle of `output` and `stderr`.
        wall_s: Seconds that it ran.
    """

    exit_code: int | None
    output: str
    stderr: str
    timed_out: bool
    cut: int
    wall_s: float


class Container:
    """A container that is leased; also an async context manager, which gives it back.

    All methods raise a RequestError. Its kind is `lease_ended` if there is no such container any more: its replica is
    gone, it was given back, or the client wasn't heard of for longer than the lease allows.

    Attributes:
        id: Of the lease. Who has it and the app's key can use the container.
        image: What it was made of.
        lease_s: Seconds without a sign of life after which it goes away.
    """

    def __init__(self, client: ContainerClient, url: str, told: Json) -> None:
        self._client, self._url, self._told = client, url, told
        self.id: str = told["lease"]
        self.image: str = told["image"]
        self.lease_s: float = told["lease_s"]
        self._timeout_s: float = told["timeout_s"]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.release()

    @property
    def lease(self) -> Json:
        """What another client takes it over by (`ContainerClient.take_over`), also in another process."""
        return {**self._told, "url": self._url}

    async def execute(
        self,
        command: str | Sequence[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        apart: bool = False,
    ) -> Ran:
        """Run a command and wait for its end; a container runs one at a time. It is never run twice.

        Args:
            command: A text for `bash -lc` (`sh` where there is no bash), or a program and its arguments.
            cwd: Folder that it runs in; None: the image's own, or `/`.
            env: More of its environment.
            timeout_s: Seconds that it may take; None: `engine.timeout_s`.
            apart: Give stderr apart from stdout.
        """
        body: Json = {"command": command if isinstance(command, str) else list(command), "apart": apart}
        if cwd is not None:
            body["cwd"] = cwd
        if env is not None:
            body["env"] = dict(env)
        if timeout_s is not None:
            body["timeout_s"] = timeout_s
        limit_s = (self._timeout_s if timeout_s is None else timeout_s) + _MARGIN_S
        told = await self._ask("execute", {**body, "call": uuid.uuid4().hex}, limit_s)
        return Ran(told["exit_code"], told["output"], told["stderr"], told["timed_out"], told["cut"], told["wall_s"])

    async def read_file(self, path: str) -> bytes:
        """Content of a file."""
        content = (await self._ask("read", {"path": path}, _CALL_S))["content"]
        return content.encode() if isinstance(content, str) else base64.b64decode(content["base64"])

    async def write_file(self, path: str, content: str | bytes) -> None:
        """Write a file, and make the folders above it."""
        sent = content if isinstance(content, str) else {"base64": base64.b64encode(content).decode()}
        await self._ask("write", {"path": path, "content": sent}, _CALL_S)

    async def release(self) -> None:
        """Give it back. One that is gone already is no error."""
        self._client.forget(self)
        try:
            await self._ask("release", {}, _SIGN_S)
        except RequestError as error:
            if error.kind != "lease_ended":
                _log.warning("a container isn't given back, it ends within %g s: %s", self.lease_s, error)

    async def renew(self) -> None:
        """Give a sign of life; the client does it in the background."""
        await self._ask("renew", {}, _SIGN_S)

    async def _ask(self, what: str, body: Json, limit_s: float) -> Json:
        return await self._client.ask_holder(self._url, what, {"lease": self.id, **body}, limit_s)


class ContainerClient:
    """Leases containers of an app; an async context manager, for one event loop.

    While it is open it tells the app now and then that its containers are in use. At its end it gives back those that
    it still has, and no others. One that can't (its process was killed) loses them when their leases end.

    Args:
        servers: The app: its address at the front door (`http://HOST:8000/NAME/v1`), or its replicas.
        api_key: Sent as bearer token; None: no such header.
        acquire_s: Seconds that `acquire` waits for a container, unless it says otherwise.
        max_attempts: Tries of `acquire` that may fail for another reason than that all containers are taken.
        shared: Whose connections are used; its owner closes them, and the endpoints. None: the client has its own.
    """

    def __init__(
        self,
        servers: Endpoints | str | Sequence[str],
        *,
        api_key: str | None,
        acquire_s: float = 600.0,
        max_attempts: int = 3,
        shared: Shared | None = None,
    ) -> None:
        if not isinstance(servers, Endpoints):
            servers = Endpoints([servers] if isinstance(servers, str) else servers)
        by_grpc = next((url for url in servers.urls if url.startswith(GRPC)), None)
        if by_grpc:
            raise ConfigError([Problem("servers", by_grpc, "containers are asked for by HTTP", "http://HOST:PORT/v1")])
        self._endpoints = servers
        self._acquire_s = acquire_s
        self._max_attempts = max_attempts
        self._shared = shared
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key.strip()}"}
        self._held: dict[str, Container] = {}
        self._beating: asyncio.Task[None] | None = None
        self._beat_s = 0.0
        self._is_closed = False

    async def __aenter__(self) -> Self:
        self._transport = HttpTransport(self._headers, self._shared)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._beating is not None:
            self._beating.cancel()
        await asyncio.gather(*(container.release() for container in list(self._held.values())))
        self._is_closed = True
        if self._shared is None:
            await self._endpoints.close()
        await self._transport.close()

    @property
    def held(self) -> list[Container]:
        """The containers that it has."""
        return list(self._held.values())

    async def acquire(self, image: str, *, timeout_s: float | None = None, lease_s: float | None = None) -> Container:
        """Lease a container; waits while all are taken.

        Args:
            image: One of the app's `engine.images`.
            timeout_s: Seconds to wait; None: the client's `acquire_s`.
            lease_s: Seconds without a sign of life after which it goes away, `engine.lease_s` at most.

        Raises:
            RequestError: There is none: `timeout` (all were taken), `connection`, `http_<status>`.
        """
        wait_s = self._acquire_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + wait_s
        body: Json = {"image": image} if lease_s is None else {"image": image, "lease_s": lease_s}
        tried: set[str] = set()
        tries = faults = 0
        last = "no server was asked"
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + wait_s):
                while True:
                    tries += 1
                    left_s = max(deadline - time.monotonic(), 0.0)
                    endpoint = await self._endpoints.take(avoid=tried)
                    tried.add(endpoint.url)
                    try:
                        return await self._acquire_from(endpoint, {**body, "wait_s": min(left_s / 2, _TURN_S)})
                    except TryFailedError as failure:
                        last = str(failure)
                        faults += failure.verdict == "fault"
                        if failure.verdict == "refusal" or faults >= self._max_attempts:
                            raise RequestError(failure.kind, last, tries) from failure
                        if tried.issuperset(self._endpoints.urls):
                            tried.clear()
                            await asyncio.sleep(_backoff(tries) if failure.verdict != "crowd" else 0.1)
        except TimeoutError as error:
            raise RequestError("timeout", f"no container within {wait_s:g} s: {last}", tries) from error
        except NobodyAnswersError as error:
            raise RequestError("connection", str(error), tries) from error

    async def ask_holder(self, url: str, what: str, body: Json, limit_s: float) -> Json:
        """Ask for something to be done with a container, once; again only if nothing was sent.

        Args:
            url: Whom its lease came from.
            what: Last part of the path.
            body: The request.
            limit_s: Seconds that its answer may take.

        Raises:
            RequestError: It wasn't done, or nobody knows.
        """
        if self._is_closed:
            raise RequestError("lease_ended", "the container was given back when its client was closed", 0)
        payload = orjson.dumps(body)
        gives_up_at = time.monotonic() + min(_PATIENCE_S, limit_s / 10)
        tries = 0
        while True:
            tries += 1
            try:
                async with asyncio.timeout(limit_s):
                    return self._parsed(await self._transport.ask(url, f"/containers/{what}", payload))
            except TimeoutError as error:
                raise RequestError("timeout", f"{url}: no answer within {limit_s:g} s", tries) from error
            except TryFailedError as failure:
                kind = "lease_ended" if failure.kind == "http_410" else failure.kind
                if failure.verdict not in {"unreachable", "crowd"}:
                    raise RequestError(kind, str(failure), tries) from failure
                if time.monotonic() >= gives_up_at:
                    gone = "lease_ended" if failure.verdict == "unreachable" else kind
                    raise RequestError(gone, str(failure), tries) from failure
            await asyncio.sleep(_backoff(tries))

    def take_over(self, lease: Json) -> Container:
        """The container of a lease, which this client keeps from now on, whoever had it before.

        Args:
            lease: `Container.lease` of it.
        """
        container = self._held.get(lease["lease"])
        if container is None:
            container = self._held[lease["lease"]] = Container(self, lease["url"], lease)
            self._beat(container.lease_s / 4)
        return container

    def forget(self, container: Container) -> None:
        """Keep it no longer: it is being given back, or another client takes it over."""
        self._held.pop(container.id, None)

    async def _acquire_from(self, endpoint: Endpoint, body: Json) -> Container:
        sent_at = time.monotonic()
        try:
            told = self._parsed(
                await self._transport.ask(endpoint.url, "/containers/acquire", orjson.dumps(body)), "lease"
            )
        except TryFailedError as failure:
            if failure.verdict in {"fault", "unreachable"}:
                gone = failure.verdict == "unreachable"
                self._endpoints.failed(endpoint, sent_at, str(failure), unreachable=gone)
            else:
                self._endpoints.succeeded(endpoint)
            raise
        finally:
            self._endpoints.release(endpoint)
        self._endpoints.succeeded(endpoint)
        return self.take_over({**told, "url": endpoint.url})

    def _parsed(self, raw: Any, key: str | None = None) -> Json:
        try:
            told = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise TryFailedError("bad_response", f"the answer isn't JSON: {error}", "fault") from error
        if not isinstance(told, dict) or (key and key not in told):
            raise TryFailedError("bad_response", f"this is no app of containers: {raw[:200]!r}", "refusal")
        return cast("Json", told)

    def _beat(self, every_s: float) -> None:
        """See that each lease is renewed so often."""
        if self._beating is None or self._beating.done() or every_s < self._beat_s:
            if self._beating is not None:
                self._beating.cancel()
            self._beat_s = every_s
            self._beating = asyncio.create_task(self._beat_on())

    async def _beat_on(self) -> None:
        while self._held:
            await asyncio.sleep(self._beat_s)
            found = await asyncio.gather(*(container.renew() for container in self.held), return_exceptions=True)
            for error in found:
                if isinstance(error, Exception):
                    # Whoever uses the container next is told.
                    _log.debug("a lease isn't renewed: %s", error)


def _backoff(tries: int) -> float:
    return min(0.2 * 2.0 ** min(tries, 10), _LONGEST_WAIT_S) * random.uniform(0.5, 1)  # noqa: S311
