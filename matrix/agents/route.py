"""Who is next: the topology of a team, compiled, and what can be said of it before anything runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

from matrix.agents.load import Loader
from matrix.agents.state import State, Turn
from matrix.errors import DataError, Problem, did_you_mean
from matrix.pipelines.prompt import compile_condition
from matrix.spec.agents import END, AgentsSpec


class Move(NamedTuple):
    """Where a workflow goes.

    Attributes:
        to: Places; several are taken at the same time, none is the end.
        join: The place after them, or `TO_END`; None: they are no branches, so that it is their own business.
    """

    to: tuple[int, ...]
    join: int | None = None


TO_END = -1
FINISH = Move(())


class RouteError(Exception):
    """A role names somebody whom the topology doesn't let it hand over to."""


class Route(Protocol):
    """A compiled topology. A place is a role at a point of it: with `order` a role may have several.

    Attributes:
        places: The role of each place.
    """

    places: list[str]

    def begin(self, state: State) -> Move | Awaitable[Move]:
        """The first move; to be awaited where a graph's path function is async."""

    def after(self, place: int, turn: Turn, state: State) -> Move | Awaitable[Move]:
        """The move after a turn; likewise.

        Raises:
            RouteError: The turn asks for one that isn't allowed.
        """


class OrderRoute:
    """Roles take turns."""

    def __init__(self, spec: AgentsSpec) -> None:
        self.places = list(spec.order)
        last = Move((0,)) if spec.repeat else FINISH
        self._moves = [Move((place + 1,)) for place in range(len(self.places) - 1)] + [last]
        self._may_end = set(spec.ends) | (set() if spec.repeat else {self.places[-1]})

    def begin(self, state: State) -> Move:  # noqa: ARG002 - as the protocol has it
        """The first of the order."""
        return Move((0,))

    def after(self, place: int, turn: Turn, state: State) -> Move:  # noqa: ARG002
        """The next one, the one that the turn names, or the end."""
        if turn.end is None and turn.next is None:
            return self._moves[place]
        role = self.places[place]
        if turn.end is not None or turn.next == END:
            if role not in self._may_end:
                raise RouteError(f"{role} ends the row, and isn't among agents.ends={sorted(self._may_end)}")
            return FINISH
        if not isinstance(turn.next, str) or turn.next not in self.places:
            raise RouteError(f"{role} hands over to {turn.next!r}, which agents.order doesn't have")
        # The nearest one ahead: a role may stand at several places.
        ahead = [(place + step) % len(self.places) for step in range(1, len(self.places) + 1)]
        return Move((next(there for there in ahead if self.places[there] == turn.next),))


_SEEN = ("task", "scratch", "metrics", "last", "turns", "history")
"""What conditions may speak of."""


class _Way(NamedTuple):
    move: Move
    targets: frozenset[str]
    holds: Callable[[Mapping[str, Any]], bool] | None


class EdgesRoute:
    """Edges, with conditions or by hand-off."""

    def __init__(self, spec: AgentsSpec) -> None:
        self.places = list(spec.named)
        self._number = {name: place for place, name in enumerate(self.places)}
        self._start = Move((self._number[spec.start or ""],))
        self._ways = [
            [
                _Way(
                    self._move(edge.targets, edge.join),
                    frozenset(edge.targets),
                    compile_condition(edge.when, f"agents.edges.{name}.{number}.when", _SEEN) if edge.when else None,
                )
                for number, edge in enumerate(spec.edges.get(name, []))
            ]
            for name in self.places
        ]

    def begin(self, state: State) -> Move:  # noqa: ARG002
        """The start."""
        return self._start

    def after(self, place: int, turn: Turn, state: State) -> Move:
        """By hand-off where the turn names somebody, else the first edge whose condition holds."""
        ways = self._ways[place]
        if turn.end is not None or turn.next is not None:
            return self._handed_over(place, ways, END if turn.end is not None else turn.next)
        if len(ways) == 1 and ways[0].holds is None:
            return ways[0].move
        seen = view(state)
        try:
            for way in ways:
                if way.holds is None or way.holds(seen):
                    return way.move
        except DataError as error:
            raise RouteError(str(error)) from error
        raise RouteError(f"after {self.places[place]} no edge's condition holds; give a last edge without one")

    def _handed_over(self, place: int, ways: list[_Way], to: Any) -> Move:
        names = tuple(to) if isinstance(to, list | tuple) else (to,)
        are_names = names and all(isinstance(name, str) for name in names) and len(set(names)) == len(names)
        for way in ways:
            if are_names and way.targets.issuperset(names):
                return way.move if len(names) == len(way.targets) else Move(self._to(names), way.move.join)
        wanted = " and ".join(map(str, names)) or "nobody"
        raise RouteError(f"{self.places[place]} hands over to {wanted}, and agents.edges has no edge for that")

    def _move(self, targets: Iterable[str], join: str | None) -> Move:
        return Move(self._to(targets), self._place(join))

    def _to(self, names: Iterable[str]) -> tuple[int, ...]:
        return tuple(self._number[name] for name in names if name != END)

    def _place(self, join: str | None) -> int | None:
        return self._number.get(join, TO_END) if join is not None else None


def view(state: State) -> dict[str, Any]:
    """What conditions see of a workflow."""
    return {
        "task": state.task,
        "scratch": state.scratch,
        "metrics": state.metrics,
        "last": state.last,
        "turns": state.turns,
        "history": state.history,
    }


def check_route(spec: AgentsSpec) -> list[Problem]:
    """Names that aren't roles, roles that nobody gets to, places from which no way leads to the end."""
    roles = spec.named
    named: list[tuple[str, str]] = []
    named += [(f"agents.order.{number}", name) for number, name in enumerate(spec.order)]
    named += [(f"agents.ends.{number}", name) for number, name in enumerate(spec.ends)]
    named += [("agents.start", spec.start)] if spec.start else []
    for name, edges in spec.edges.items():
        named.append((f"agents.edges.{name}", name))
        for number, edge in enumerate(edges):
            key = f"agents.edges.{name}.{number}"
            named += [(f"{key}.to", to) for to in edge.targets]
            named += [(f"{key}.join", edge.join)] if edge.join else []
    problems = [
        Problem(key, name, "no such role", did_you_mean(name, [*roles, END]))
        for key, name in named
        if name not in roles and not (name == END and key.endswith((".to", ".join")))
    ]
    if END in spec.roles:
        problems.append(Problem(f"agents.roles.{END}", None, f"{END} stands for the end of a row", "another name"))
    return problems or (_check_order(spec) if spec.order else _check_edges(spec) if spec.edges else [])


def _check_order(spec: AgentsSpec) -> list[Problem]:
    problems = [
        Problem(
            f"agents.roles.{name}", None, "never has a turn: agents.order doesn't name it", "name it, or leave it out"
        )
        for name in spec.named
        if name not in spec.order
    ]
    if spec.repeat and not spec.ends:
        hint = f"agents.ends=[{spec.order[-1]}] (roles that may end a row), or agents.repeat=false"
        problems.append(
            Problem("agents.order", spec.order, "no way to the end: it goes round, and nobody ends it", hint)
        )
    problems += [
        Problem("agents.ends", name, "never has a turn: agents.order doesn't name it", "name it there")
        for name in spec.ends
        if name not in spec.order
    ]
    return problems


def _check_edges(spec: AgentsSpec) -> list[Problem]:
    reached = _closure({spec.start or ""}, _successors(spec))
    backwards: dict[str, set[str]] = {}
    for name, targets in _successors(spec).items():
        for target in targets:
            backwards.setdefault(target, set()).add(name)
    ending = _closure({END}, backwards)
    problems = []
    for name in spec.named:
        if name not in reached:
            message = f"is unreachable: no edge leads to it from {spec.start}"
            problems.append(Problem(f"agents.roles.{name}", None, message, "an edge to it, or leave it out"))
        elif name not in ending:
            message = (
                "no way to the end: no edge leads on" if not spec.edges.get(name) else "no way to the end from here"
            )
            problems.append(Problem(f"agents.edges.{name}", None, message, f"agents.edges.{name}={END}"))
    return problems


def _successors(spec: AgentsSpec) -> dict[str, set[str]]:
    """Who may come after whom; the branches of a fan-out lead to its join."""
    after: dict[str, set[str]] = {}
    for name, edges in spec.edges.items():
        for edge in edges:
            after.setdefault(name, set()).update(edge.targets)
            if edge.join is not None:
                for target in edge.targets:
                    after.setdefault(target, set()).add(edge.join)
    return after


def _closure(found: set[str], after: Mapping[str, set[str]]) -> set[str]:
    todo = list(found)
    while todo:
        for name in after.get(todo.pop(), ()):
            if name not in found:
                found.add(name)
                todo.append(name)
    return found


def compile_route(spec: AgentsSpec, loader: Loader) -> Route:
    """Compile a team's topology.

    Raises:
        ConfigError: A condition has a syntax error, or the graph can't be loaded.
    """
    if spec.order:
        return OrderRoute(spec)
    if spec.edges:
        return EdgesRoute(spec)
    from matrix.agents.langgraph import GraphRoute

    use = spec.graph or ""
    return GraphRoute(loader.find(use, "agents.graph"), list(spec.named), use)
