"""A role's tools at work: each call a durable step of the row."""

from __future__ import annotations

import time
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

from matrix.agents.functions import CallError
from matrix.agents.services import RowContainer, report, shown
from matrix.agents.steps import Step
from matrix.data.rows import Call, Response, Score
from matrix.errors import DataError, RequestError
from matrix.pipelines.prompt import shortened
from matrix.sandbox.execution import Executed
from matrix.spec.agents import ContainerTool, SandboxTool

if TYPE_CHECKING:
    from matrix.agents.clock import Clock
    from matrix.agents.seats import Seat
    from matrix.agents.workflow import Flow

SHOWN_CHARS = 2000
"""Of a tool's result, in the history."""
_Service = TypeVar("_Service", SandboxTool, ContainerTool)
ONCE = "once:"
"""Before the name of a step of `once` in the journal."""


class BoundTools:
    """`Tools` of one role in one turn of a row."""

    __slots__ = ("_at", "_clock", "_flow", "_made", "_seat", "calls", "role")

    def __init__(self, seat: Seat, flow: Flow, at: int | str, clock: Clock) -> None:
        self.role = seat.name
        self._seat, self._flow, self._at, self._clock = seat, flow, at, clock
        self._made = 0
        self.calls: list[Call] = []

    @property
    def specs(self) -> list[dict[str, Any]]:
        """As the protocol has it."""
        return self._seat.tool_specs

    def prompt(self, **extra: Any) -> str:
        """As the protocol has it."""
        return self._seat.prompt(self._flow.example, extra)

    async def llm(self, messages: Sequence[Mapping[str, Any]], **fields: Any) -> Response:
        """As the protocol has it."""
        seat, flow = self._seat, self._flow
        if isinstance(messages, str) or not all(isinstance(message, Mapping) for message in messages):
            raise TypeError(
                f"llm takes a list of messages, each with role and content, not {shortened(repr(messages))}"
            )
        at = self._next()
        body = {"model": seat.model, "messages": list(messages), **seat.fields, **fields}
        if seat.tool_specs and "tools" not in fields:
            body["tools"] = seat.tool_specs
        if "seed" not in body:
            # Another one for each step: two roles with the same prompt mustn't get the same answer.
            body["seed"] = (flow.state.seed * 1_000_003 + zlib.crc32(at.encode())) & 0x7FFFFFFF
        digest = _digest(body)
        done = flow.replayed(at, digest)
        if done is not None:
            response = Response(**done.result)
            self._took("llm", 0.0, response, replayed=True)
            return response
        began = time.monotonic()
        try:
            with self._clock:
                response = await seat.client.chat(
                    body, affinity=flow.affinity, label=f"{flow.state.id}/{flow.state.trial}", begun=flow.begun
                )
        except RequestError as error:
            took_s = time.monotonic() - began
            self.calls.append(Call("llm", took_s, attempts=error.attempts, error=f"{error.kind}: {error}"))
            raise
        flow.journal(Step(at, "llm", digest, response))
        self._took("llm", time.monotonic() - began, response)
        return response

    async def call(self, name: str, arguments: Mapping[str, Any] | str) -> str:
        """As the protocol has it."""
        seat = self._seat
        names = {spec["function"]["name"] for spec in seat.tool_specs}
        if name not in names:
            return f"error: there is no tool {name!r}; there are: {', '.join(sorted(names)) or 'none'}"
        if name in seat.services:
            return await self._use(name, seat.services[name], arguments)
        given = arguments if isinstance(arguments, str) else dict(arguments)
        result: str = await self._step(name, [name, given], lambda: seat.toolbox.call(name, given, seat.tools))
        if result.startswith("error: "):
            self.calls[-1].error, self.calls[-1].result = result.removeprefix("error: "), None
        return result

    async def answer(self, tool_call: Mapping[str, Any]) -> dict[str, Any]:
        """As the protocol has it."""
        function = tool_call.get("function") or {}
        result = await self.call(str(function.get("name")), function.get("arguments") or "{}")
        return {"role": "tool", "tool_call_id": tool_call.get("id"), "content": result}

    async def sandbox(self, name: str, code: str, **fields: Any) -> Executed:
        """As the protocol has it."""
        tool = self._service(name, SandboxTool)
        body = {"code": code, "language": tool.language, **fields}
        if tool.timeout_s is not None:
            body.setdefault("timeout", tool.timeout_s)
        flow, client = self._flow, self._seat.clients[tool.app]

        async def execute() -> dict[str, Any]:
            response = await client.execute(body, affinity=None, label=f"{flow.state.id}/{flow.state.trial}")
            return response.executed or {}

        return Executed.model_validate(await self.away(name, body, execute))

    def container(self, name: str) -> RowContainer:
        """As the protocol has it."""
        self._service(name, ContainerTool)
        return self._flow.container(name, self)

    async def once(self, name: str, function: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        """As the protocol has it."""
        # Not by its arguments: it mustn't be repeated, and a state among them has times that no replay repeats.
        result = await self._step(f"{ONCE}{name}", name, lambda: function(*arguments))
        self._flow.held[name] = result
        return result

    @property
    def large(self) -> dict[Any, Any]:
        """References to the row's large texts, which go with the row."""
        return self._flow.large

    async def whole_turn(self, function: Callable[[], Awaitable[Any]]) -> Any:
        """A turn in another process, as a step. That process minds its time, and here it isn't known when it begins."""
        return await self.away("turn", [self.role, self._at], function)

    async def away(self, name: str, asked: Any, function: Callable[[], Awaitable[Any]]) -> Any:
        """A step that takes place elsewhere, with limits of its own: the turn's time stands still."""
        with self._clock:
            return await self._step(name, asked, function)

    async def score(self, label: str, text: str) -> Score:
        """As the protocol has it."""
        return await self._flow.score(label, text)

    def _service(self, name: str, kind: type[_Service]) -> _Service:
        tool = self._seat.services.get(name)
        if not isinstance(tool, kind):
            what = "sandbox" if kind is SandboxTool else "container"
            raise DataError(f"agents.roles.{self.role}.tools={self._seat.tools} has no {name!r} of kind {what}")
        return tool

    async def _use(self, name: str, tool: SandboxTool | ContainerTool, arguments: Mapping[str, Any] | str) -> str:
        """What a model gets of a tool that is an app."""
        try:
            text = await self._seat.toolbox.checked(name, arguments)
        except CallError as error:
            return f"error: {error}"
        if isinstance(tool, ContainerTool):
            return report(await self.container(name).execute(text), tool.output_chars)
        return _said(await self.sandbox(name, text), tool.output_chars)

    async def _step(self, name: str, asked: Any, function: Callable[[], Awaitable[Any]]) -> Any:
        at = self._next()
        digest = _digest(asked)
        shown = name.removeprefix(ONCE)
        done = self._flow.replayed(at, digest)
        if done is not None:
            self.calls.append(Call(shown, 0.0, replayed=True, result=_begin(done.result)))
            return done.result
        began = time.monotonic()
        try:
            result = await function()
        except Exception as error:
            took_s = time.monotonic() - began
            self.calls.append(Call(shown, took_s, error=f"{type(error).__name__}: {error}"))
            raise
        self._flow.journal(Step(at, name, digest, result))
        self.calls.append(Call(shown, time.monotonic() - began, result=_begin(result)))
        return result

    def _next(self) -> str:
        self._made += 1
        return f"{self._at}.{self._made}"

    def _took(self, name: str, took_s: float, response: Response, *, replayed: bool = False) -> None:
        usage = {key: value for key, value in response.usage.items() if value is not None}
        self.calls.append(Call(name, took_s, usage, response.endpoint, response.attempts, replayed))
        self._flow.spent(usage, self._seat.price)


def _said(executed: Executed, chars: int) -> str:
    """What a model gets to read of a program."""
    ending = executed.exception or executed.signal or f"exit code {executed.exit_code}"
    first = "ok" if executed.status == "ok" else f"{executed.status}: {ending}"
    output = shown(executed.stdout + executed.stderr, chars)
    return f"{first}\n{output}" if output else f"{first}, no output"


def _begin(result: Any) -> str:
    text = result if isinstance(result, str) else orjson.dumps(result, str, orjson.OPT_NON_STR_KEYS).decode()
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}..."


def _digest(asked: Any) -> str:
    """Tells two requests apart, and is the same in every process.

    Raises:
        DataError: It can't be sent as JSON.
    """
    try:
        return blake2b(orjson.dumps(asked, str, orjson.OPT_NON_STR_KEYS), digest_size=8).hexdigest()
    except TypeError as error:
        raise DataError(f"the arguments can't be written as JSON: {error}") from error
