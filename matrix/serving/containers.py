"""The backend of engine=container: `/v1/containers/...`; docs/containers.md."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, TypeVar

import aiohttp
import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from matrix.client.parse import error_message
from matrix.client.sessions import open_session
from matrix.containers.pool import ContainerError, ContainerPool
from matrix.sandbox.execution import Content, Encoded
from matrix.serving.backend import ApiError, Backend, Json, Route
from matrix.serving.meter import gauge
from matrix.spec.model import ModelSpec
from matrix.spec.services import ContainerEngine

_PATH = "/v1/containers/"
_LONGEST_WAIT_S = 600.0
_BUSY_S = 1.0
"""What a client waits that finds all containers taken."""
_GONE = 410
_STATUSES = {"refused": 400, "busy": 429, "failed": 500, "begun": 409, "ended": _GONE}
"""The front door asks another replica after 429 and 500, which `acquire` alone gives: no command is run twice."""
_FORBIDDEN = {
    "mounts": "engine.mounts",
    "binds": "engine.mounts",
    "bind_dir": "engine.mounts",
    "executable": "engine.backend",
    "run_args": "engine.args",
    "start_script_args": "engine.args",
    "forward_env": "engine.environment",
}
"""What clients of other systems may ask for, and which field of the app's config decides it here."""

Text = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Value = Annotated[str, Field(pattern=r"^[^\x00]*$")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Acquire(_Body):
    image: Text
    wait_s: float = Field(default=30.0, ge=0, le=_LONGEST_WAIT_S)
    lease_s: float | None = Field(default=None, gt=0)


class _OfLease(_Body):
    lease: Text


class _Execute(_OfLease):
    command: Text | Annotated[list[Value], Field(min_length=1)]
    call: Text | None = None
    cwd: Text | None = None
    env: dict[Variable, Value] = {}
    timeout_s: float | None = Field(default=None, gt=0)
    apart: bool = False


class _Read(_OfLease):
    path: Text


class _Write(_Read):
    content: Content


_Given = TypeVar("_Given", bound=_Body)


class ContainerBackend(Backend):
    """Leases containers, and runs commands in them.

    What stands for a lease says which replica has it, under a signature: another replica that gets a request passes it
    on, and passes the key to nobody else.

    Args:
        engine: What containers are.
        model: What the app calls itself.
    """

    def __init__(self, engine: ContainerEngine, model: ModelSpec) -> None:
        self._engine = engine
        self._name = model.name
        self._pool = ContainerPool(engine)
        self._address = ""
        self._key: str | None = None
        self._signing = secrets.token_bytes(32)

    def reached_at(self, address: str, api_key: str | None) -> None:
        """See `Backend`."""
        self._address, self._key = address, api_key
        if api_key is not None:
            self._signing = hashlib.sha256(b"leases of containers " + api_key.encode()).digest()

    async def start(self) -> None:
        """Remove what dead replicas have left here, and get ready."""
        self._session = open_session()
        await self._pool.start()

    async def close(self) -> None:
        """End all containers."""
        await self._pool.close()
        await self._session.close()

    def routes(self) -> Mapping[str, Route]:
        """`/v1/containers/acquire` and so on."""
        return {
            _PATH + "acquire": Route(self._acquire),
            _PATH + "execute": self._with_lease("execute", _Execute, self._execute),
            _PATH + "read": self._with_lease("read", _Read, self._read),
            _PATH + "write": self._with_lease("write", _Write, self._write),
            _PATH + "renew": self._with_lease("renew", _OfLease, self._renew),
            _PATH + "release": self._with_lease("release", _OfLease, self._release),
        }

    def models(self) -> list[str]:
        """The app's name for itself."""
        return [self._name]

    def problem(self) -> str | None:
        """None: what is wrong with a container, its own client is told."""
        return None

    def metrics(self) -> str:
        """A lease is what runs here: a replica that is to go waits for them, and autoscaling counts them."""
        return gauge("matrix_requests_running", "Containers that are leased.", self._pool.taken) + gauge(
            "matrix_requests_waiting", "Requests for a container that wait for one.", self._pool.waiting
        )

    async def _acquire(self, body: Json) -> Json:
        given = _checked(_Acquire, body)
        with _told():
            token = await self._pool.acquire(given.image, given.wait_s, given.lease_s)
            return {
                "lease": self._signed(token),
                "image": given.image,
                "lease_s": self._pool.lease_s(token),
                "timeout_s": self._engine.timeout_s,
            }

    async def _execute(self, token: str, given: _Execute) -> Json:
        ended = await self._pool.execute(
            token,
            given.command,
            call=given.call,
            cwd=given.cwd,
            env=given.env,
            timeout_s=given.timeout_s,
            apart=given.apart,
        )
        return {
            "exit_code": ended.exit_code,
            "output": ended.output.decode(errors="replace"),
            "stderr": ended.stderr.decode(errors="replace"),
            "timed_out": ended.exit_code is None,
            "cut": ended.cut,
            "wall_s": ended.wall_s,
        }

    async def _read(self, token: str, given: _Read) -> Json:
        content = await self._pool.read(token, given.path)
        try:
            return {"content": content.decode()}
        except UnicodeDecodeError:
            return {"content": {"base64": base64.b64encode(content).decode()}}

    async def _write(self, token: str, given: _Write) -> Json:
        await self._pool.write(token, given.path, _bytes_of(given.content))
        return {}

    async def _renew(self, token: str, _: _OfLease) -> Json:
        self._pool.renew(token)
        return {}

    async def _release(self, token: str, _: _OfLease) -> Json:
        await self._pool.release(token)
        return {}

    def _with_lease(self, what: str, kind: type[_Given], do: Callable[[str, _Given], Awaitable[Json]]) -> Route:
        async def answer(body: Json) -> Json:
            given = _checked(kind, body)
            address, token = self._verified(given.lease)  # type: ignore[attr-defined]
            if address != self._address:
                return await self._passed_on(address, what, given)
            with _told():
                return await do(token, given)

        return Route(answer)

    def _signed(self, token: str) -> str:
        what = f"{self._address}/{token}"
        return f"{what}/{self._signature(what)}"

    def _verified(self, lease: str) -> tuple[str, str]:
        what, _, signature = lease.rpartition("/")
        if not hmac.compare_digest(signature.encode(), self._signature(what).encode()):
            # It is of a server without a key that isn't there any more, or of no server of ours.
            raise ApiError(_GONE, "there is no such container: this isn't a lease of this app's")
        address, _, token = what.rpartition("/")
        return address, token

    def _signature(self, what: str) -> str:
        return hmac.new(self._signing, what.encode(), "sha256").hexdigest()[:32]

    async def _passed_on(self, address: str, what: str, given: _Body) -> Json:
        """The answer of the replica that has the lease."""
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        body = orjson.dumps(given.model_dump(mode="json", exclude_unset=True))
        try:
            reply = await self._session.post(f"http://{address}{_PATH}{what}", data=body, headers=headers)
            raw = await reply.read()
        except aiohttp.ClientError as error:
            raise ApiError(_GONE, f"the replica that had the container went away: {error}") from error
        if reply.status != 200:
            raise ApiError(reply.status, error_message(raw))
        answer: Json = orjson.loads(raw)
        return answer


@contextmanager
def _told() -> Iterator[None]:
    """Tells a client what can't be done."""
    try:
        yield
    except ContainerError as error:
        wait_s = _BUSY_S if error.reason == "busy" else None
        raise ApiError(_STATUSES[error.reason], str(error), retry_after_s=wait_s) from error


def _checked(kind: type[_Given], body: Json) -> _Given:
    given = {name: value for name, value in body.items() if name != "model"}
    for name in given:
        if name in _FORBIDDEN:
            raise ApiError(400, f"{name}: no client decides that; the app's {_FORBIDDEN[name]} does")
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        raise ApiError(400, "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in found)) from None


def _bytes_of(content: Content) -> bytes:
    if not isinstance(content, Encoded):
        return content.encode()
    try:
        return base64.b64decode(content.base64, validate=True)
    except binascii.Error as error:
        raise ApiError(400, f"content.base64: {error}") from None
