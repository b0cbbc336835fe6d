"""The backend of engine=sandbox: `/v1/execute`."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError

from matrix.sandbox.execution import Execution
from matrix.sandbox.pool import RefusedError, Sandbox, SandboxBusyError
from matrix.serving.backend import EXECUTE, ApiError, Backend, Json, Route
from matrix.serving.meter import gauge
from matrix.spec.model import ModelSpec
from matrix.spec.services import SandboxEngine

_BUSY_S = 1.0
"""What a client waits that finds the queue full."""


class SandboxBackend(Backend):
    """Runs programs.

    Args:
        engine: Limits and languages.
        model: What the app calls itself.
    """

    def __init__(self, engine: SandboxEngine, model: ModelSpec) -> None:
        self._name = model.name
        self._sandbox = Sandbox(engine)

    async def start(self) -> None:
        """Start the workers."""
        await self._sandbox.start()

    async def close(self) -> None:
        """End them."""
        await self._sandbox.close()

    def routes(self) -> Mapping[str, Route]:
        """`/v1/execute`."""
        return {EXECUTE: Route(self.execute)}

    def models(self) -> list[str]:
        """The app's name for itself."""
        return [self._name]

    def problem(self) -> str | None:
        """That of the workers."""
        return self._sandbox.problem()

    def metrics(self) -> str:
        """The queue."""
        return gauge("matrix_requests_waiting", "Requests in a queue.", self._sandbox.waiting)

    async def execute(self, body: Json) -> Json:
        """Run a program; `model` of the request has led it here.

        Raises:
            ApiError: 400 for what isn't one or asks for more than the app allows, 429 if too many wait.
        """
        try:
            execution = Execution.model_validate({name: value for name, value in body.items() if name != "model"})
        except ValidationError as error:
            raise ApiError(400, _said(error)) from None
        try:
            executed = await self._sandbox.execute(execution)
        except RefusedError as error:
            raise ApiError(400, str(error)) from None
        except SandboxBusyError as error:
            raise ApiError(429, str(error), retry_after_s=_BUSY_S, kind="rate_limit") from None
        return executed.model_dump(mode="json")


def _said(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in found)
