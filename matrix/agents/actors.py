"""Roles that have processes of their own: Ray actors that get turns in batches from all peers."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from matrix.agents.clock import Clock, end_what_is_late
from matrix.agents.mark import Mark
from matrix.agents.said import row_error, to_turn, too_late
from matrix.agents.state import State
from matrix.data.rows import Example, RowError, RowKey
from matrix.spec import RunSpec

VERSION = 1
"""Of `Message`."""
LARGE_CHARS = 16_384
"""Texts that are longer travel by reference: they go into Ray's store once for each row, not once for each turn."""
UNDER_WAY = 2
"""Batches that a process has of a peer at a time: one that it works on, one that is ready."""
_CLAIM_S = 30.0


@dataclass(slots=True)
class Message:
    """A turn for a role with processes of its own: the state, with its large texts apart.

    Attributes:
        state: The state; a text that travels by reference is empty in it.
        texts: References to texts of the history, by their number in it.
        task: References to texts of the task, by column.
        version: Of this format.
    """

    state: State
    texts: dict[int, Any] = field(default_factory=dict)
    task: dict[str, Any] = field(default_factory=dict)
    version: int = VERSION


Reply = dict[str, Any]
"""What came of a turn, as JSON can hold it: `turn`, `scratch`, `metrics`, `scores`; or `error`."""


class RoleProcess:
    """The actor: a role in a process of its own."""

    def __init__(self, spec: RunSpec, name: str, run_dir: Path) -> None:
        from matrix.agents.seats import make_role
        from matrix.agents.team import team_loader
        from matrix.pipelines.prompt import compile_template

        agents = spec.agents
        if agents is None:
            raise ValueError("the spec has no agents")
        role = agents.named[name]
        loader = team_loader(agents, run_dir)
        self._name, self._timeout_s = name, role.timeout_s
        self._act, _ = make_role(loader, name, role)
        # A class may take a batch at once, as a model on a GPU wants it.
        self._act_batch: Any = getattr(getattr(self._act, "__self__", None), "act_batch", None)
        self._template = compile_template(role.prompt, f"agents.roles.{name}.prompt") if role.prompt else None
        self._room = _Room()
        self._folder = run_dir / "steps" / "roles"
        self._mark: Mark | None = None
        self._clocks: set[Clock] = set()

    async def act(self, batch: list[Message], *, alone: bool = False) -> list[Reply | None]:
        """Take the turns of a batch.

        Args:
            batch: The turns.
            alone: It is one turn that the process was claimed for.

        Returns:
            The reply of each at its place; None for one that is to be tried alone, as they failed together.
        """
        async with self._room.entered(alone=alone):
            states = await asyncio.gather(*map(_resolved, batch))
            if self._act_batch is not None:
                return await self._all(states)
            return list(await asyncio.gather(*map(self._one, states)))

    async def claim(self) -> None:
        """Wait until nobody is in the process, and keep others out until `act` has been called alone."""
        await self._room.claim()

    async def ping(self) -> None:
        """Answer, once it is up."""

    async def _one(self, state: State) -> Reply:
        tools: Any = _ActorTools(self._name, self._template, state)
        said, error = await self._timed(state, self._act(state, tools))
        return self._reply(said, state, error)

    async def _all(self, states: list[State]) -> list[Reply | None]:
        said, error = await self._timed(states[0], self._act_batch(states))
        if error is None and (not isinstance(said, list | tuple) or len(said) != len(states)):
            message = f"{self._name}.act_batch gives a list with a turn for each of its {len(states)} states"
            error = RowError("TypeError", message)
        if error is not None:
            return [None] * len(states) if len(states) > 1 else [self._reply(None, states[0], error)]
        return [self._reply(turn, state, None) for turn, state in zip(said, states, strict=True)]

    async def _timed(self, state: State, work: Any) -> tuple[Any, RowError | None]:
        """What comes of a user's own code, or its error."""
        if self._mark is None:
            # Here, since it watches the thread that it is made in.
            self._mark = Mark(self._folder, f"{self._name}-{os.getpid()}")
            self._mark.watch(self._timeout_s)
            self._sweeper = asyncio.create_task(end_what_is_late(self._clocks))
        task = asyncio.current_task()
        clock = Clock(task, time.monotonic() + self._timeout_s)
        self._clocks.add(clock)
        try:
            return await self._mark.running(RowKey(state.index, state.trial), work), None
        except (Exception, SystemExit, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError):
                if clock.was_late():
                    return None, too_late(self._name, self._timeout_s)
                if task is not None and task.cancelling():
                    raise
            return None, row_error(self._name, error)
        finally:
            self._clocks.discard(clock)

    def _reply(self, said: Any, state: State, error: RowError | None) -> Reply:
        try:
            turn = to_turn(said, self._name) if said is not None else None
        except (TypeError, ValueError) as wrong:
            turn, error = None, row_error(self._name, wrong)
        return {
            "turn": asdict(turn) if turn is not None else None,
            "scratch": state.scratch,
            "metrics": state.metrics,
            "scores": {label: asdict(score) for label, score in state.scores.items()},
            "error": asdict(error) if error is not None else None,
        }


class _Room:
    """Who is in a process at a time: any batches, or one turn that has claimed it for itself."""

    def __init__(self) -> None:
        self._lock, self._empty = asyncio.Lock(), asyncio.Event()
        self._inside = 0
        self._empty.set()
        self._claim: asyncio.TimerHandle | None = None

    async def claim(self) -> None:
        """Wait until it is empty, and keep others out until the one who has claimed it has been in."""
        await self._lock.acquire()
        await self._empty.wait()
        # Whoever has claimed it may be dead by now.
        self._claim = asyncio.get_running_loop().call_later(_CLAIM_S, self._give_up)

    @asynccontextmanager
    async def entered(self, *, alone: bool) -> AsyncIterator[None]:
        """Be in it."""
        claim = self._claim
        if alone and claim is not None:
            self._claim = None
            claim.cancel()
            try:
                yield
            finally:
                self._lock.release()
            return
        async with self._lock:
            self._inside += 1
            self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    def _give_up(self) -> None:
        self._claim = None
        self._lock.release()


class _ActorTools:
    """What a role has in a process of its own: its prompt. Its turn as a whole is what is journalled."""

    def __init__(self, role: str, template: Any, state: State) -> None:
        self.role, self._template, self._state = role, template, state

    @property
    def specs(self) -> list[dict[str, Any]]:
        return []

    def prompt(self, **extra: Any) -> str:
        state = self._state
        if self._template is None:
            return ""
        rendered: str = self._template.render(Example(state.id, state.index, {**state.task, **extra}))
        return rendered

    def __getattr__(self, name: str) -> Any:
        way_out = "let a role without actor, replicas, num_gpus, num_cpus and resources call it"
        raise AttributeError(f"tools.{name} isn't there for a role in a process of its own: {way_out}")


def start_roles(spec: RunSpec, run_dir: Path) -> dict[str, list[Any]]:
    """Start the processes of the roles that have some; Ray starts one again that dies.

    Returns:
        Their handles, by role.
    """
    if spec.agents is None or not any(role.is_actor for role in spec.agents.named.values()):
        return {}
    import ray

    return {
        name: [
            ray.remote(
                num_cpus=role.num_cpus or 0,
                num_gpus=role.num_gpus,
                resources=role.resources,
                max_restarts=-1,
                max_concurrency=UNDER_WAY * spec.workload.drivers + 2,
                scheduling_strategy="SPREAD",
            )(RoleProcess).remote(spec, name, run_dir)
            for _ in range(role.replicas)
        ]
        for name, role in spec.agents.named.items()
        if role.is_actor
    }


def end_roles(actors: Mapping[str, list[Any]]) -> None:
    """End them."""
    import ray

    for handles in actors.values():
        for handle in handles:
            ray.kill(handle)


def to_message(state: State, large: dict[Any, Any]) -> Message:
    """The state as it travels; what is large is put into the store at its first turn of this kind."""
    texts: dict[int, Any] = {}
    history = state.history
    for number, entry in enumerate(history):
        if len(entry.text) > LARGE_CHARS:
            texts[number] = _reference(large, number, entry.text)
    if texts:
        history = [replace(entry, text="") if number in texts else entry for number, entry in enumerate(history)]
    task = {
        name: _reference(large, name, value)
        for name, value in state.task.items()
        if isinstance(value, str) and len(value) > LARGE_CHARS
    }
    columns = {name: value for name, value in state.task.items() if name not in task} if task else state.task
    return Message(replace(state, history=history, task=columns), texts, task)


def _reference(large: dict[Any, Any], place: int | str, text: str) -> Any:
    if place not in large:
        import ray

        large[place] = ray.put(text)
    return large[place]


async def _resolved(message: Message) -> State:
    """The state with all its texts."""
    state = message.state
    for number, reference in message.texts.items():
        state.history[number] = replace(state.history[number], text=await reference)
    for name, reference in message.task.items():
        state.task[name] = await reference
    return state
