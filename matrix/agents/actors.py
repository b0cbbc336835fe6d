"""Roles that have processes of their own: Ray actors that get turns in batches from all peers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from matrix.agents.said import RoleRaisedError, row_error, to_turn
from matrix.agents.state import State, Turn
from matrix.data.rows import Example, RowError, Score
from matrix.errors import MatrixError
from matrix.spec import RunSpec

VERSION = 1
"""Of `Message`."""
LARGE_CHARS = 16_384
"""Texts that are longer travel by reference: they go into Ray's store once for each row, not once for each turn."""
_UNDER_WAY = 2
"""Batches that a process has at a time: one that it works on, one that is ready."""
_AGAIN_S = 0.5


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


class RoleDiedError(MatrixError):
    """The process of a role died of a turn, each time that it was tried."""


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
        self._name = name
        self._act, _ = make_role(loader, name, role)
        # A class may take a batch at once, as a model on a GPU wants it.
        self._act_batch = getattr(getattr(self._act, "__self__", None), "act_batch", None)
        self._template = compile_template(role.prompt, f"agents.roles.{name}.prompt") if role.prompt else None

    async def act(self, batch: list[Message]) -> list[Reply]:
        """Take the turns of a batch; the reply of each at its place."""
        states = await asyncio.gather(*map(_resolved, batch))
        if self._act_batch is not None:
            try:
                turns = await self._act_batch(states)
            except Exception as error:  # noqa: BLE001 - a user's own code: its rows become errors
                return [self._error(error) for _ in states]
            return [_reply(turn, state, self._name) for turn, state in zip(turns, states, strict=True)]
        return list(await asyncio.gather(*map(self._one, states)))

    async def ping(self) -> None:
        """Answer, once it is up."""

    async def _one(self, state: State) -> Reply:
        try:
            tools: Any = _ActorTools(self._name, self._template, state)
            return _reply(await self._act(state, tools), state, self._name)
        except Exception as error:  # noqa: BLE001 - a user's own code: its row becomes an error
            return self._error(error)

    def _error(self, error: Exception) -> Reply:
        return {"error": asdict(row_error(self._name, error))}


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


class ActorPool:
    """A peer's way to the processes of a role.

    A process that dies may have died of any turn of its batch: each of them is then tried by itself, one after another,
    until it is known whose fault it is.

    Args:
        name: The role's name.
        actors: Handles of its processes.
        batch: Turns that go together at most.
        max_attempts: Times that a process may die of a turn.
    """

    def __init__(self, name: str, actors: list[Any], batch: int, max_attempts: int) -> None:
        self._name, self._batch, self._max_attempts = name, batch, max_attempts
        self._processes = [_Process(actor) for actor in actors]
        self._queue: deque[_Waiting] = deque()
        self._suspects: deque[_Waiting] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    async def act(self, state: State, tools: Any) -> Turn | None:
        """One turn, as `Act` has it; as a whole a step of the row.

        Raises:
            RoleRaisedError: The role raised an exception.
            RoleDiedError: Its process died of this turn `max_attempts` times.
        """
        reply = await tools.whole_turn(lambda: self._ask(state, tools.large))
        state.scratch = reply["scratch"]
        state.metrics.update(reply["metrics"])
        state.scores.update({label: Score(**score) for label, score in reply["scores"].items()})
        return Turn(**reply["turn"]) if reply["turn"] is not None else None

    async def close(self) -> None:
        """Drop what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _ask(self, state: State, large: dict[Any, Any]) -> Reply:
        waiting = _Waiting(_message(state, large), asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        # Whoever else asks in this round of the loop goes along in the same batch.
        asyncio.get_running_loop().call_soon(self._send)
        reply = await waiting.reply
        if reply.get("error") is not None:
            raise RoleRaisedError(RowError(**reply["error"]))
        return reply

    def _send(self) -> None:
        for process in sorted(self._processes, key=lambda one: one.under_way):
            if self._suspects and not process.under_way:
                self._start(process, [self._suspects.popleft()])
            elif self._queue and process.under_way < _UNDER_WAY and not process.down:
                size = min(self._batch, len(self._queue))
                self._start(process, [self._queue.popleft() for _ in range(size)])

    def _start(self, process: _Process, batch: list[_Waiting]) -> None:
        batch = [waiting for waiting in batch if not waiting.reply.done()]
        if not batch:
            return
        process.under_way += 1
        task = asyncio.get_running_loop().create_task(self._work(process, batch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(self, process: _Process, batch: list[_Waiting]) -> None:
        import ray

        try:
            if process.down:
                await self._until_up(process)
            replies = await process.actor.act.remote([waiting.message for waiting in batch])
            for waiting, reply in zip(batch, replies, strict=True):
                if not waiting.reply.done():
                    waiting.reply.set_result(reply)
        except ray.exceptions.RayActorError as error:
            process.down = True
            self._suspect(batch, error)
        except ray.exceptions.RayError as error:
            for waiting in batch:
                if not waiting.reply.done():
                    waiting.reply.set_exception(RoleDiedError(f"{self._name}: {error}"))
        finally:
            process.under_way -= 1
            self._send()

    def _suspect(self, batch: list[_Waiting], error: Exception) -> None:
        alone = len(batch) == 1
        for waiting in batch:
            waiting.deaths += alone
            if waiting.deaths >= self._max_attempts and not waiting.reply.done():
                said = f"its process died {waiting.deaths} times of this turn: {str(error).splitlines()[0]}"
                waiting.reply.set_exception(RoleDiedError(f"{self._name}: {said}"))
            else:
                self._suspects.append(waiting)

    async def _until_up(self, process: _Process) -> None:
        """Wait for Ray to start the process again, so that the next death is the turn's own."""
        import ray

        while process.down:
            try:
                await process.actor.ping.remote()
            except ray.exceptions.RayActorError:
                await asyncio.sleep(_AGAIN_S)
            else:
                process.down = False


@dataclass(slots=True, eq=False)
class _Process:
    """One of the processes, as a peer knows it."""

    actor: Any
    under_way: int = 0
    down: bool = False


@dataclass(slots=True, eq=False)
class _Waiting:
    """A turn that waits for its reply."""

    message: Message
    reply: asyncio.Future[Reply]
    deaths: int = 0


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
                max_concurrency=_UNDER_WAY * spec.workload.drivers + 2,
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


def _message(state: State, large: dict[Any, Any]) -> Message:
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


def _reply(said: Any, state: State, role: str) -> Reply:
    turn = to_turn(said, role) if said is not None else None
    return {
        "turn": asdict(turn) if turn is not None else None,
        "scratch": state.scratch,
        "metrics": state.metrics,
        "scores": {label: asdict(score) for label, score in state.scores.items()},
        "error": None,
    }
