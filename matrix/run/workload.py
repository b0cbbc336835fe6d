"""Work through rows in one process: client, scorers, watchdog. What `execute` and every driver have in common."""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from matrix.agents.pulse import Pulse
from matrix.agents.team import Team
from matrix.apps.directory import NEWS_S
from matrix.client.concurrency import AdaptiveLimit
from matrix.client.containers import ContainerClient
from matrix.client.endpoints import Endpoints
from matrix.client.gate import Gate
from matrix.client.http import ModelClient
from matrix.client.rates import Rates
from matrix.data.rows import Row
from matrix.pipelines.generate import Generate
from matrix.pipelines.scoring_pool import ScoringPool
from matrix.run.session import Served
from matrix.run.watchdog import watching
from matrix.spec import ContainerEngine, EngineSpec, RunSpec, SandboxEngine
from matrix.spec.workload import WorkloadSpec


class Workload:
    """An async context manager; in it `pipeline` takes rows to their end.

    Args:
        spec: The run's spec.
        served: Who answers, by app.
        emit: Told every finished row, in the order in which they finish.
        run_dir: The run dir, where a team keeps its steps.
        writer: Name of this process among those that share the rows.
        actors: Processes of a team's roles, by role.
        share: Processes that share the run's limits.
    """

    def __init__(
        self,
        spec: RunSpec,
        served: Mapping[str, Served],
        emit: Callable[[Row], None],
        *,
        run_dir: Path,
        writer: str,
        actors: Mapping[str, list[Any]],
        share: int = 1,
    ) -> None:
        self._workload = spec.workload
        engines = {name: app.engine for name, app in spec.all_apps().items()}
        self._clients = {
            name: _client(_limits_of(spec.workload, engines[name]), one, share)
            for name, one in served.items()
            if not isinstance(engines[name], ContainerEngine)
        }
        self._containers = {
            name: ContainerClient(_endpoints(one), api_key=one.api_key)
            for name, one in served.items()
            if isinstance(engines[name], ContainerEngine)
        }
        self._scoring = ScoringPool(spec.scorers, workers=_scoring_workers(share), clients=self._clients)
        self.pipeline: Generate | Team
        if spec.pipeline is not None:
            self.pipeline = Generate(spec, spec.pipeline, self._clients[spec.main_app], self._scoring, emit)
        else:
            self.pipeline = Team(
                spec,
                self._clients,
                self._containers,
                self._scoring,
                emit,
                run_dir=run_dir,
                writer=writer,
                actors=actors,
                share=share,
            )

    @property
    def in_flight(self) -> int:
        """Requests that are with servers."""
        return sum(client.gate.limit.in_flight for client in self._clients.values())

    @property
    def pulse(self) -> Pulse | None:
        """How the team is doing; None without one."""
        return self.pipeline.pulse() if isinstance(self.pipeline, Team) else None

    def close_gate(self) -> None:
        """Begin no more rows; those that have begun go on to their end, the others get none."""
        for client in self._clients.values():
            client.gate.close()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as opened:
            opened.enter_context(_calm_collector())
            for client in self._clients.values():
                await opened.enter_async_context(client)
                await opened.enter_async_context(watching(client, self._workload))
            for containers in self._containers.values():
                await opened.enter_async_context(containers)
            await opened.enter_async_context(self._scoring)
            await opened.enter_async_context(self.pipeline)
            self._opened = opened.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._opened.aclose()


class _calm_collector:  # noqa: N801 - a context manager that reads like a function
    """Let Python's garbage collector look less often: with its defaults it takes a fifth of a busy driver's time.

    A request makes some hundred objects that live as long as it does, so that the young generation (2,000 objects at
    most) is full of live ones whenever it is looked at, and with it the old one, modules and all. What is there before
    the workload is left out of it.
    """

    def __enter__(self) -> None:
        self._before = gc.get_threshold()
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)

    def __exit__(self, *_: object) -> None:
        gc.set_threshold(*self._before)
        gc.unfreeze()


def _endpoints(served: Served) -> Endpoints:
    every_s = NEWS_S if served.app else 30.0
    return Endpoints(served.urls, served.refresh(), refresh_every_s=every_s, fallback=served.front_door)


def _limits_of(workload: WorkloadSpec, engine: EngineSpec) -> WorkloadSpec:
    """What a paid API allows is no limit of a sandbox."""
    free = {"requests_per_minute": None, "tokens_per_minute": None}
    return workload.model_copy(update=free) if isinstance(engine, SandboxEngine) else workload


def _client(workload: WorkloadSpec, served: Served, share: int) -> ModelClient:
    return ModelClient(
        _endpoints(served),
        api_key=served.api_key,
        timeout_s=workload.request_timeout_s,
        max_attempts=workload.max_attempts,
        try_timeout_s=workload.try_timeout_s,
        gate=_gate(workload, share),
    )


def _gate(workload: WorkloadSpec, share: int) -> Gate:
    limits = workload.concurrency
    start, minimum, maximum = (math.ceil(number / share) for number in (limits.start, limits.min, limits.max))
    requests, tokens = (rate and rate / share for rate in (workload.requests_per_minute, workload.tokens_per_minute))
    return Gate(AdaptiveLimit(start=start, minimum=minimum, maximum=maximum), Rates(requests, tokens))


def _scoring_workers(share: int) -> int:
    """Processes for scorers that need their own: SymPy takes about 0.1 s for a wrong answer."""
    return min(16, max(1, (os.cpu_count() or 1) // 4 // share))
