"""A team of agents in one process: takes rows to their ends, as many at a time as may be in flight."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from matrix.agents.clock import Clock, end_what_is_late
from matrix.agents.load import KEPT_FILE, Loader
from matrix.agents.mark import Mark
from matrix.agents.pool import ActorPool
from matrix.agents.pulse import Pulse, RoleCount
from matrix.agents.role import Act
from matrix.agents.route import compile_route
from matrix.agents.seats import Release, Seat, make_role
from matrix.agents.services import Containers
from matrix.agents.steps import StepJournal
from matrix.agents.toolbox import Toolbox
from matrix.agents.workflow import Flow, LeavingError
from matrix.client.containers import ContainerClient
from matrix.client.gate import Gate, GateClosedError
from matrix.client.http import ModelClient
from matrix.data.readers import BadRow
from matrix.data.rows import AgentRow, Entry, Example, Row, RowError, Score
from matrix.data.work import Work
from matrix.errors import DataError
from matrix.pipelines.references import References
from matrix.pipelines.scoring_pool import ScoringPool
from matrix.spec import RunSpec
from matrix.spec.agents import AgentsSpec

_LOG = logging.getLogger(__name__)

_BREATH_S = 0.02
"""Rows that never wait for anything let others have the loop after so long."""


class Team:
    """The team of one peer; an async context manager.

    Args:
        spec: The run's spec, with `agents`.
        clients: Clients of the apps that roles and tools ask, by name, those of containers left out.
        containers: Clients of apps of containers, by name.
        scoring: Pool of the team's scorers.
        emit: Told every finished row.
        run_dir: The run dir.
        writer: The peer's name.
        actors: Handles of the processes of roles that have some of their own, by role.
        share: Peers that share the run's limits.

    Attributes:
        seats: The roles, by their places in the route.
        clocks: Whatever has a time limit now.
        counts: What roles did, by name.
        containers: What its rows have of containers.
        steps: Journal of what calls gave.
        mark: Says whose code is running.
    """

    def __init__(
        self,
        spec: RunSpec,
        clients: Mapping[str, ModelClient],
        containers: Mapping[str, ContainerClient],
        scoring: ScoringPool,
        emit: Callable[[Row], None],
        *,
        run_dir: Path,
        writer: str,
        actors: Mapping[str, list[Any]],
        share: int = 1,
    ) -> None:
        agents = _agents(spec)
        self.seed, self.affinity = spec.seed, spec.workload.affinity
        self.limits = agents.limits
        self.max_attempts = spec.workload.max_attempts
        self._emit, self._scoring = emit, scoring
        asked = {role.app or spec.main_app for role in agents.named.values()}
        self._gates: list[Gate] = [client.gate for name, client in clients.items() if name in asked]
        self.containers = Containers(agents, containers, self.say)
        self._loader = team_loader(agents, run_dir)
        self._toolbox = Toolbox(agents.tools, self._loader.find)
        self._spec, self._agents, self._clients = spec, agents, clients
        self._pools = {
            name: ActorPool(
                name, handles, agents.roles[name].batch, spec.workload.max_attempts, agents.roles[name].timeout_s
            )
            for name, handles in actors.items()
        }
        self._references = References(agents.scorers, "agents.scorers")
        limit = spec.workload.max_in_flight
        self._most = max(1, limit // share) if limit else None
        self._folder, self._writer = run_dir / "steps", writer
        self.clocks: set[Clock] = set()
        self.counts = {name: RoleCount() for name in agents.named}
        self._flows: dict[Flow, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._changed = asyncio.Event()
        self._said: set[str] = set()
        self._releases: list[tuple[Release, float]] = []

    async def __aenter__(self) -> Self:
        await self._toolbox.open()
        for pool in self._pools.values():
            await pool.open()
        self.route = compile_route(self._agents, self._loader)
        made = {}
        for name, role in self._agents.named.items():
            if name in self._pools:
                act: Act = self._pools[name].act
                release: Release | None = None
            else:
                act, release = make_role(self._loader, name, role)
            if release is not None:
                self._releases.append((release, role.timeout_s))
            made[name] = Seat(
                self._spec,
                name,
                role,
                count=self.counts[name],
                act=act,
                clients=self._clients,
                toolbox=self._toolbox,
            )
        self.seats = [made[name] for name in self.route.places]
        self.steps = StepJournal(self._folder, self._writer)
        self.mark = Mark(self._folder, self._writer)
        self.mark.watch(max(role.timeout_s for role in self._agents.named.values()))
        self._sweeper = asyncio.create_task(end_what_is_late(self.clocks, self._look_for_room))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._sweeper.cancel()
        with suppress(asyncio.CancelledError):
            await self._sweeper
        for pool in self._pools.values():
            await pool.close()
        self.mark.close()
        self.steps.close()
        await self._toolbox.close()

    @property
    def rows(self) -> int:
        """Rows in flight."""
        return len(self._tasks)

    @property
    def capacity(self) -> int:
        """Rows that may be in flight now: a fixed number, or twice what the clients' limits let through."""
        return self._most or 2 * sum(gate.limit.limit for gate in self._gates)

    async def run(self, work: Iterator[Work]) -> None:
        """Work through the rows; once a gate is closed, no more are begun.

        Raises:
            DataError: A row could not be read or written; what was in flight is dropped.
        """
        breath = time.monotonic()
        for one in work:
            while len(self._tasks) >= self.capacity:
                await self._change()
            if self._failure is not None or any(gate.is_closed for gate in self._gates):
                break
            self.begin(one)
            # Reading rows may take a while, and rows that are admitted want to begin.
            if time.monotonic() - breath > _BREATH_S:
                await asyncio.sleep(0)
                breath = time.monotonic()
        while self._tasks and self._failure is None:
            await self._change()
        if self._failure is not None:
            raise self._failure

    def begin(self, work: Work, over: Callable[[BaseException | None], None] | None = None) -> None:
        """Take a row in; `over` is told when it is finished, with what kept it from being written, if anything did."""
        task = asyncio.get_running_loop().create_task(self.mark.running(work.key, self.work_on(work)))
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._changed.set()
            if task.cancelled():
                return
            error = task.exception()
            if error is not None and not isinstance(error, LeavingError):
                self._failure = self._failure or error
            if over is not None:
                over(error)

        task.add_done_callback(ended)

    async def work_on(self, work: Work) -> None:
        """Take one row to its end and emit it; one that finds the gate closed isn't begun.

        Raises:
            DataError: It could not be written.
            LeavingError: It goes on in another peer; its argument is the work that is left.
        """
        example = work.example
        if isinstance(example, BadRow):
            error = RowError("data", str(example), 0)
            self._emit(AgentRow(example.id, example.index, work.trial, "error", {}, error=error, termination="error"))
            return
        flow = Flow(self, work)
        if work.give_up is not None:
            row = flow.give_up(work.give_up)
        else:
            self._flows[flow] = None
            try:
                row = await flow.run()
            except GateClosedError:
                return
            except LeavingError as left:
                raise LeavingError(work._replace(message=left.args[0], steps=())) from None
            finally:
                del self._flows[flow]
        if flow.held or flow.kept:
            await self._release(flow)
        self._write(row)
        self.steps.finished(flow.key)

    def give(self, most: int) -> None:
        """Have so many rows, those that began last, go on elsewhere from their next turns on."""
        for flow in list(reversed(self._flows))[:most]:
            flow.leaving = True

    def pulse(self) -> Pulse:
        """How it is now."""
        now = time.monotonic()
        oldest = [flow for flow, _ in zip(self._flows, range(3), strict=False)]
        slowest = [(round(now - flow.began, 1), flow.state.id, flow.at) for flow in oldest]
        return Pulse(self.counts, len(self._flows), slowest)

    async def score(self, label: str, text: str, example: Example) -> Score:
        """Have a text judged.

        Raises:
            DataError: There is no such scorer, or the row has no reference for it.
        """
        if label not in self._references.labels:
            names = ", ".join(self._references.labels) or "none"
            raise DataError(f"there is no scorer {label!r} in agents.scorers ({names})")
        references = self._references.render(example, [label])
        self._scoring.check(references)
        return (await self._scoring.score([text], references))[label]

    def say(self, text: str) -> None:
        """Log something that concerns a row, once for each kind of it."""
        kind = text.partition(": ")[2]
        if kind not in self._said:
            self._said.add(kind)
            _LOG.warning("%s (others like it aren't said)", text)

    async def _release(self, flow: Flow) -> None:
        await self.containers.release(flow.kept)
        for release, limit_s in self._releases:
            try:
                async with asyncio.timeout(limit_s):
                    await release(flow.state, flow.held)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - a user's own code, after the row's result is known
                self.say(f"row {flow.state.id}: giving back what it held fails with {type(error).__name__}: {error}")

    def _write(self, row: AgentRow) -> None:
        try:
            self._emit(row)
        except DataError as error:
            if not isinstance(error.__cause__, TypeError):
                raise
            # What a role gave, or did to the task, isn't the run's fault.
            failed = replace(
                row, status="error", error=RowError("data", str(error), 0), termination="error", metrics={}, scores={}
            )
            # What can't be written may be anything that it said; what it called and paid for is kept.
            history = [Entry(entry.agent, "", entry.at_s, entry.took_s, calls=entry.calls) for entry in row.history]
            try:
                self._emit(replace(failed, history=history))
            except DataError as again:
                if not isinstance(again.__cause__, TypeError):
                    raise
                self._emit(replace(failed, history=[], request={}))

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _look_for_room(self) -> None:
        """A limit may have grown, which nobody tells."""
        if len(self._tasks) < self.capacity:
            self._changed.set()


def team_loader(agents: AgentsSpec, run_dir: Path | None = None) -> Loader:
    """What finds the team's code: that which the run dir keeps, so that all nodes have the same."""
    kept = run_dir / KEPT_FILE if run_dir is not None else None
    return Loader(kept if kept is not None and kept.is_file() else agents.file, agents.modules)


def _agents(spec: RunSpec) -> AgentsSpec:
    if spec.agents is None:
        raise ValueError("the spec has no agents")
    return spec.agents
