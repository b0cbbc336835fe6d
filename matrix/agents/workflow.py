"""One row on its way through a team, from its first turn to its row of output."""

from __future__ import annotations

import asyncio
import copy
import pickle
import time
from typing import TYPE_CHECKING, Any

from matrix.agents.calls import ONCE, BoundTools
from matrix.agents.clock import UNLIMITED, Clock
from matrix.agents.merge import merged
from matrix.agents.outcome import figures
from matrix.agents.route import FINISH, TO_END, Move, RouteError
from matrix.agents.said import RoleBrokenError, row_error, to_turn, too_late
from matrix.agents.services import LEASE, Kept, RowContainer
from matrix.agents.state import State, Turn
from matrix.agents.steps import Step, decode_steps
from matrix.client.gate import GateClosedError
from matrix.data.rows import AgentRow, Call, Entry, RowError, Score, tokens_of
from matrix.data.work import Work
from matrix.errors import DataError
from matrix.spec.model import Price

if TYPE_CHECKING:
    from matrix.agents.seats import Seat
    from matrix.agents.team import Team

_BREATH_S = 0.05
"""Turns that never wait let others have the process after so long."""
VERSION = 2
"""Of the message that a workflow is when it moves to another peer."""


class LimitReachedError(Exception):
    """A limit of the row is reached; its only argument is the termination."""


class LeavingError(Exception):
    """The workflow goes on in another peer; its only argument is the message, or the work that is left."""


class Flow:
    """A row's workflow.

    Attributes:
        state: What its roles see.
        affinity: Requests with the same go to the same replica.
        begun: It has completed a step: it isn't turned away at a gate any more.
        held: What its calls of `once` gave, by name.
        kept: Its containers, by their tools.
        large: References to texts that travelled; they end with it.
        leaving: It is to go on in another peer, from its next turn on.
        at: The role that has it.
    """

    __slots__ = (
        "_columns", "_cost", "_replay", "_team", "_tokens", "affinity", "at", "began", "begun", "example", "held",
        "kept", "key", "large", "leaving", "move", "state",
    )  # fmt: skip

    def __init__(self, team: Team, work: Work) -> None:
        example = work.example
        self._team = team
        self.example: Any = example
        self.key = work.key
        self._columns: dict[str, Any] = getattr(example, "columns", {})
        # A copy of the task: what a role does to it isn't the row's.
        task = dict(self._columns)
        self.state = State(example.id, example.index, work.trial, team.seed + work.trial, task)
        self.began = time.monotonic()
        self.affinity = f"{example.index}/{work.trial}" if team.affinity else None
        self.begun = bool(work.steps) or work.message is not None
        self.held: dict[str, Any] = {}
        self.kept: dict[str, Kept] = {}
        self.large: dict[Any, Any] = {}
        self.leaving = False
        self.at = ""
        self.move: Move | None = None
        self._replay = decode_steps(list(work.steps)) if work.steps else {}
        self._tokens: dict[str, int] = {}
        self._cost = 0.0
        if work.message is not None:
            self._unpack(work.message)

    async def run(self) -> AgentRow:
        """Take the row to its end.

        Raises:
            GateClosedError: It asked for nothing so far, and the gate is closed: the row isn't begun.
            LeavingError: It goes on elsewhere.
            DataError: A step can't be written.
        """
        task, limit_s = asyncio.current_task(), self._team.limits.seconds
        clock = UNLIMITED if limit_s is None else Clock(task, self.began + limit_s)
        turn_clock = Clock(task)
        clocks = self._team.clocks
        clocks.add(clock)
        clocks.add(turn_clock)
        error = None
        try:
            termination = await self._walk(clock, turn_clock)
        except LimitReachedError as reached:
            termination = str(reached)
        except asyncio.CancelledError:
            if not clock.was_late():
                raise
            termination = "max_seconds"
        except (GateClosedError, LeavingError, RoleBrokenError, _StepNotWrittenError):
            raise
        except _RoleFailedError as failed:
            termination, error = "error", failed.error
        except RouteError as lost:
            termination, error = "error", RowError("route", str(lost), 0)
        except Exception as unforeseen:  # noqa: BLE001 - what roles leave in a state comes up between their turns, too
            termination, error = "error", row_error(self.at, unforeseen)
        finally:
            clocks.discard(clock)
            clocks.discard(turn_clock)
        return self._row(termination, error)

    def give_up(self, why: RowError) -> AgentRow:
        """The row of a workflow that nobody should try again; what it holds is known from its steps."""
        self.held = {
            step.name.removeprefix(ONCE): step.result for step in self._replay.values() if step.name.startswith(ONCE)
        }
        self.kept = {
            step.name.removeprefix(LEASE): Kept(step.result)
            for step in self._replay.values()
            if step.name.startswith(LEASE)
        }
        return self._row("error", why)

    async def _walk(self, clock: Clock, turn_clock: Clock) -> str:
        team, state = self._team, self.state
        route, breath = team.route, time.monotonic()
        move = await self._begun() if self.move is None else self.move
        while True:
            to = move.to
            if not to:
                return "end"
            self._check_limits(len(to), clock)
            if self.leaving and (message := self._packed(move)) is not None:
                team.containers.leave(self.kept)
                raise LeavingError(message)
            if len(to) == 1 and move.join is None:
                place = to[0]
                turn = await self._turn(team.seats[place], state, state.turns, turn_clock)
                state.turns += 1
                if turn_clock.ended - breath > _BREATH_S:
                    # Roles that never wait would have the process for themselves, and no limit would end them.
                    await asyncio.sleep(0)
                    breath = turn_clock.ended
                after = route.after(place, turn, state)
                move = after if isinstance(after, Move) else await after
                if turn.end is not None:
                    return str(turn.end)
            else:
                move = await self._fan_out(move)

    async def _begun(self) -> Move:
        move = self._team.route.begin(self.state)
        return move if isinstance(move, Move) else await move

    async def _fan_out(self, move: Move) -> Move:
        """Turns of several roles at the same time, each with a view of its own; what they add comes in their order."""
        state, before = self.state, len(self.state.history)
        states = [
            State(
                state.id, state.index, state.trial, state.seed, state.task, list(state.history),
                copy.deepcopy(state.scratch), dict(state.metrics), dict(state.scores), state.turns,
            )
            for _ in move.to
        ]  # fmt: skip
        team, mark = self._team, self._team.mark
        try:
            async with asyncio.TaskGroup() as group:
                turns = [
                    group.create_task(
                        mark.running(self.key, self._branch(team.seats[place], own, f"{state.turns}-{number}"))
                    )
                    for number, (place, own) in enumerate(zip(move.to, states, strict=True))
                ]
        except ExceptionGroup as several:
            raise several.exceptions[0] from several
        for place, own, turn in zip(move.to, states, turns, strict=True):
            if turn.result().end is not None or turn.result().next is not None:
                message = f"{team.seats[place].name} is one of several at the same time: who is next is the edge's join"
                raise RouteError(message)
            state.history += own.history[before:]
        state.scratch = merged("scratch", state.scratch, [own.scratch for own in states])
        state.metrics = merged("metrics", state.metrics, [own.metrics for own in states])
        state.scores = merged("scores", state.scores, [own.scores for own in states])
        state.turns += len(move.to)
        return FINISH if move.join in (None, TO_END) else Move((move.join,))

    async def _branch(self, seat: Seat, state: State, at: str) -> Turn:
        """A turn beside others."""
        clock = Clock(asyncio.current_task())
        self._team.clocks.add(clock)
        try:
            return await self._turn(seat, state, at, clock)
        finally:
            self._team.clocks.discard(clock)

    async def _turn(self, seat: Seat, state: State, at: int | str, clock: Clock) -> Turn:
        """One turn of a role; its entry goes into the state's history."""
        count = seat.count
        tools = BoundTools(seat, self, at, clock)
        self.at = seat.name
        count.in_flight += 1
        began = time.monotonic()
        clock.due = began + seat.timeout_s
        entries = len(state.history)
        try:
            said = await seat.act(state, tools)
            turn = to_turn(said, seat.name)
        except (GateClosedError, RoleBrokenError, _StepNotWrittenError):
            raise
        except (Exception, SystemExit, asyncio.CancelledError) as error:
            failure = _failure(seat, clock, error)
            if failure is None:
                raise
            if tools.calls:
                _count_calls(count, tools.calls)
                took_s = time.monotonic() - began
                state.history.append(Entry(seat.name, "", began - self.began, took_s, calls=tools.calls))
            raise _RoleFailedError(failure) from error
        finally:
            clock.rest()
            count.in_flight -= 1
        clock.ended = ended = time.monotonic()
        took_s = ended - began
        if len(state.history) != entries:
            raise _RoleFailedError(row_error(seat.name, TypeError("a role doesn't change state.history itself")))
        count.turns += 1
        count.turn_s += took_s
        if tools.calls:
            _count_calls(count, tools.calls)
        if said is not None:
            state.history.append(
                Entry(
                    seat.name, turn.text, began - self.began, took_s, turn.data, turn.tool_calls, turn.reasoning,
                    tools.calls,
                )
            )  # fmt: skip
        return turn

    def replayed(self, at: str, digest: str) -> Step | None:
        """What an earlier attempt got at this place; None: it has to be asked for."""
        if not self._replay:
            return None
        step = self._replay.pop(at, None)
        if step is None:
            return None
        if step.digest != digest:
            self._replay.clear()
            self._team.say(f"row {self.state.id}: asks for something else at its replay; its steps are made anew")
            return None
        return step

    def journal(self, step: Step) -> None:
        """Write a step down before anybody sees its result."""
        try:
            self._team.steps.append(self.key, step)
        except DataError as error:
            if isinstance(error.__cause__, TypeError):
                raise
            raise _StepNotWrittenError(str(error)) from error
        self.begun = True

    def spent(self, usage: dict[str, Any], price: Price) -> None:
        """Count a call's tokens, and what they cost."""
        tokens = self._tokens
        prompt, cached, completion = tokens_of(usage)
        for name, count in (
            ("prompt_tokens", prompt),
            ("completion_tokens", completion),
            ("cached_prompt_tokens", cached),
        ):
            tokens[name] = tokens.get(name, 0) + count
        if price.is_known:
            self._cost += price.usd(prompt, cached, completion)

    def container(self, name: str, tools: BoundTools) -> RowContainer:
        """The row's container that a tool means, for the role that has the turn."""
        return self._team.containers.of(name, self.state.id, self.kept, self.example, tools)

    async def score(self, label: str, text: str) -> Score:
        """Have a text judged."""
        return await self._team.score(label, text, self.example)

    def _packed(self, move: Move) -> bytes | None:
        """The workflow as a message, at the begin of a turn; None: it has to stay where it is.

        Pickled, since it goes on as if it had stayed: JSON makes lists of tuples, and texts of much else.
        """
        state = self.state
        fields = {
            "version": VERSION, "move": move, "history": state.history, "scratch": state.scratch,
            "metrics": state.metrics, "scores": state.scores, "turns": state.turns, "tokens": self._tokens,
            "cost": self._cost, "held": self.held, "kept": self.kept, "age_s": time.monotonic() - self.began,
        }  # fmt: skip
        try:
            return pickle.dumps(fields, pickle.HIGHEST_PROTOCOL)
        except Exception as error:  # noqa: BLE001 - whatever a role left there: it works as long as the row stays
            self.leaving = False
            self._team.say(f"row {self.state.id}: its state can't be packed, so it stays with its peer: {error}")
            return None

    def _unpack(self, message: bytes) -> None:
        fields = pickle.loads(message)  # noqa: S301 - another process of this run made it
        if fields["version"] != VERSION:
            raise DataError(f"a workflow's message has version {fields['version']}, not {VERSION}")
        state = self.state
        state.history, state.scratch, state.turns = fields["history"], fields["scratch"], fields["turns"]
        state.metrics, state.scores = fields["metrics"], fields["scores"]
        self.move, self.held, self.kept = fields["move"], fields["held"], fields["kept"]
        self._tokens, self._cost = fields["tokens"], fields["cost"]
        self.began -= fields["age_s"]

    def _check_limits(self, more: int, clock: Clock) -> None:
        """Whether so many turns more may be taken."""
        limits, tokens = self._team.limits, self._tokens
        if self.state.turns + more > limits.turns:
            raise LimitReachedError("max_turns")
        if clock.late:
            raise LimitReachedError("max_seconds")
        if not tokens:
            return
        if limits.tokens is not None and tokens["prompt_tokens"] + tokens["completion_tokens"] >= limits.tokens:
            raise LimitReachedError("max_tokens")
        if limits.cost_usd is not None and self._cost >= limits.cost_usd:
            raise LimitReachedError("max_cost")

    def _row(self, termination: str, error: RowError | None) -> AgentRow:
        state = self.state
        metrics, scores, wrong = figures(state)
        if not all(isinstance(entry, Entry) for entry in state.history):
            wrong = "a role put something else into state.history than its turns"
            state.history = [entry for entry in state.history if isinstance(entry, Entry)]
        if wrong and error is None:
            termination, error = "error", RowError("data", wrong, 0)
        return AgentRow(
            state.id, state.index, state.trial, "error" if error else "ok", {"task": self._columns}, None, error,
            scores, state.history, termination, metrics, self._tokens, time.monotonic() - self.began, self._cost,
        )  # fmt: skip


class _RoleFailedError(Exception):
    """Ends the row with an error."""

    def __init__(self, error: RowError) -> None:
        super().__init__(error.message)
        self.error = error


class _StepNotWrittenError(DataError):
    """The disk refuses: the run can't go on."""


def _failure(seat: Seat, clock: Clock, error: BaseException) -> RowError | None:
    """What an exception in a turn makes of the row; None: it isn't the turn's, the row itself is to end."""
    if isinstance(error, asyncio.CancelledError):
        if clock.was_late():
            return too_late(seat.name, seat.timeout_s)
        # Something that the role waits for may have been cancelled, and not this row.
        if clock.task is None or clock.task.cancelling():
            return None
    return row_error(seat.name, error)


def _count_calls(count: Any, calls: list[Call]) -> None:
    for call in calls:
        count.calls += 1
        count.call_s += call.took_s
        prompt, cached, completion = tokens_of(call.usage)
        count.prompt_tokens += prompt
        count.cached_prompt_tokens += cached
        count.completion_tokens += completion
