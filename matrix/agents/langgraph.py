"""A LangGraph graph as the route of a team: its nodes are roles, and only its edges are used."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Collection, Iterable, Mapping, Sequence
from itertools import product
from typing import Any

from matrix.agents.graph_paths import START, GraphPath, graph_edges, names_of
from matrix.agents.route import FINISH, Move, RouteError, view
from matrix.agents.state import State, Turn
from matrix.errors import ConfigError, Problem, did_you_mean
from matrix.spec.agents import END


class GraphRoute:
    """Who is next, by a graph's edges. The functions of its nodes are never called: roles have the turns.

    Args:
        made: A StateGraph, a compiled one, or a function that makes one.
        roles: The team's roles; each has a node, and each node is one.
        use: What the config calls the graph, for messages.

    Attributes:
        places: The roles of its nodes.

    Raises:
        ConfigError: It is no such graph, or one that can't be a route.
    """

    def __init__(self, made: object, roles: Collection[str], use: str = "") -> None:
        self._use = use
        builder = self._builder(made)
        self.places = list(builder.nodes)
        self._number = {name: place for place, name in enumerate(self.places)}
        self._edges, self._waiting = graph_edges(builder)
        self._paths = {
            source: [GraphPath.of(name, branch, builder) for name, branch in branches.items()]
            for source, branches in builder.branches.items()
            if branches
        }
        problems = [*self._unknown(roles), *self._unsupported(builder)]
        problems = problems or [*self._dead_ends(), *self._undetermined()]
        if problems:
            raise ConfigError(problems)
        # What no path function has a say in is known now.
        self._fixed = {
            name: self._move(self._edges.get(name, []))
            for name in [START, *self.places]
            if name not in self._paths and not any(name in starts for starts, _ in self._waiting)
        }

    def successors(self, role: str) -> frozenset[str]:
        """Whom the graph lets a role hand over to, `end` included."""
        return frozenset(self._possible(role))

    def begin(self, state: State) -> Move | Awaitable[Move]:
        """The first move."""
        return self._next(START, state)

    def after(self, place: int, turn: Turn, state: State) -> Move | Awaitable[Move]:
        """The move after a turn; to be awaited where a path function is async.

        Raises:
            RouteError: The turn, or a path function, asks for what the graph hasn't got.
        """
        role = self.places[place]
        if turn.end is not None or turn.next is not None:
            return self._handed_over(role, END if turn.end is not None else turn.next)
        return self._next(role, state)

    def _handed_over(self, role: str, to: Any) -> Move:
        names = (to,) if isinstance(to, str) else tuple(to)
        if not names or not self.successors(role).issuperset(names):
            wanted, ways = names_of(map(str, names)) or "nobody", names_of(self.successors(role))
            raise RouteError(f"{role} hands over to {wanted}, and the graph leads from it to {ways}")
        return self._move(names)

    def _next(self, source: str, state: State) -> Move | Awaitable[Move]:
        if source in self._fixed:
            return self._fixed[source]
        for starts, end in self._waiting:
            if source in starts:
                raise RouteError(f"{end} waits for {names_of(starts)}, and {source} alone had its turn")
        paths = self._paths[source]
        given = [path.choose(view(state)) for path in paths]
        if any(inspect.isawaitable(one) for one in given):
            return self._awaited(source, given)
        return self._chosen(source, given)

    async def _awaited(self, source: str, given: Sequence[Any]) -> Move:
        return self._chosen(source, [await one if inspect.isawaitable(one) else one for one in given])

    def _chosen(self, source: str, given: Sequence[Any]) -> Move:
        found = list(self._edges.get(source, ()))
        for path, one in zip(self._paths[source], given, strict=True):
            found += path.places(one, self.places)
        return self._move(found)

    def _move(self, to: Sequence[str]) -> Move:
        # To go to the end and elsewhere is to go elsewhere, as in LangGraph.
        names = [name for name in dict.fromkeys(to) if name != END]
        if not names:
            return FINISH
        places = tuple(self._number[name] for name in names)
        if len(names) == 1:
            return Move(places)
        after = self._joined(names)
        if after is None:
            raise RouteError(self._parted(names))
        return Move(places, None if after == END else self._number[after])

    def _possible(self, source: str) -> set[str]:
        found = {*self._edges.get(source, ()), *(end for starts, end in self._waiting if source in starts)}
        for path in self._paths.get(source, ()):
            found |= path.targets or {*self.places, END}
        return found or {END}

    def _joined(self, together: Iterable[str]) -> str | None:
        """The one place that all of them lead to and nothing else; None if there is none."""
        at_once = set(together)
        after: set[str] = set()
        for name in at_once:
            possible = self._possible(name)
            after |= possible if name in self._paths else (possible - {END} or {END})
        half = any(at_once & starts and not at_once >= starts for starts, _ in self._waiting)
        return after.pop() if len(after) == 1 and not half else None

    def _parted(self, together: Iterable[str]) -> str:
        ways = "; ".join(f"{name} leads to {names_of(self.successors(name))}" for name in together)
        return f"{names_of(together)} have their turns at the same time, and lead to different places: {ways}"

    def _builder(self, made: Any) -> Any:
        try:
            from langgraph.graph import StateGraph
            from langgraph.pregel import Pregel
        except ImportError as error:
            hint = "pip install 'matrix-llm[langgraph]'"
            raise self._error(f"is for LangGraph, which is not installed: {error}", hint) from error
        hint = "a StateGraph, or a function without arguments that gives one"
        if not isinstance(made, StateGraph | Pregel) and callable(made):
            if inspect.iscoroutinefunction(made) or inspect.isclass(made):
                raise self._error("is neither a graph nor a plain function", hint)
            try:
                made = made()
            except Exception as error:
                raise self._error(f"fails with {type(error).__name__}: {error}", hint) from error
        if isinstance(made, Pregel):
            if getattr(made, "interrupt_before_nodes", None) or getattr(made, "interrupt_after_nodes", None):
                raise self._error("stops for interrupts, which no route does", "leave them out, or don't compile it")
            made = getattr(made, "builder", made)
        if not isinstance(made, StateGraph):
            raise self._error(f"is a {type(made).__name__}", hint)
        return made

    def _error(self, message: str, hint: str) -> ConfigError:
        return ConfigError([self._problem(message, hint)])

    def _problem(self, message: str, hint: str = "") -> Problem:
        return Problem("agents.graph", self._use or None, message, hint)

    def _unknown(self, roles: Collection[str]) -> list[Problem]:
        problems = [
            self._problem(f"its node {name} is no role", did_you_mean(name, list(roles), "agents.roles."))
            for name in self.places
            if name not in roles
        ]
        problems += [
            Problem(
                f"agents.roles.{name}", None, "never has a turn: the graph has no such node", "add it, or leave it out"
            )
            for name in roles
            if name not in self.places
        ]
        places = {*self.places, END}
        named = [(source, target) for source, targets in self._edges.items() for target in (source, *targets)]
        named += [(name, name) for starts, end in self._waiting for name in (*starts, end)]
        named += [
            (source, name)
            for source, paths in self._paths.items()
            for name in (source, *(one for path in paths for one in path.targets or ()))
        ]
        problems += [
            self._problem(f"an edge of {source} names {name}, which is no node", did_you_mean(name, self.places))
            for source, name in dict.fromkeys(named)
            if name not in places and name != START
        ]
        if not self._edges.get(START) and not self._paths.get(START):
            problems.append(self._problem("nobody begins", "add_edge(START, ...)"))
        return problems

    def _unsupported(self, builder: Any) -> list[Problem]:
        """What LangGraph would do, and a route doesn't: found here, since it would silently be left out."""
        from langgraph.pregel import Pregel

        problems = []
        for name, node in builder.nodes.items():
            if node.ends:
                hint = "add_conditional_edges, or Turn(next=...) of the role"
                problems.append(self._problem(f"its node {name} hands over by Command, and is never called", hint))
            if isinstance(node.runnable, Pregel):
                problems.append(self._problem(f"its node {name} is a graph of its own", "put its nodes into this one"))
            if node.defer or node.is_error_handler or node.error_handler_node:
                problems.append(self._problem(f"its node {name} is deferred, or handles errors, which no route does"))
        return problems + [
            self._problem(f"the edges of {source} by {path.name}: {path.problem}")
            for source, paths in self._paths.items()
            for path in paths
            if path.problem
        ]

    def _dead_ends(self) -> list[Problem]:
        after = {name: self._possible(name) for name in [START, *self.places]}
        reached = _closure(START, after)
        before: dict[str, set[str]] = {}
        for name, targets in after.items():
            for target in targets:
                before.setdefault(target, set()).add(name)
        ending = _closure(END, before)
        problems = []
        for name in self.places:
            if name not in reached:
                message = "is unreachable: no edge of the graph leads to it"
                problems.append(Problem(f"agents.roles.{name}", None, message, "an edge to it, or leave it out"))
            elif name not in ending:
                problems.append(self._problem(f"no way to the end from {name}", "an edge to END somewhere after it"))
        return problems

    def _undetermined(self) -> list[Problem]:
        """Fan-outs without one place to come after them. What a path function gives at a time is seen when it does."""
        groups: dict[frozenset[str], None] = {}
        for source in [START, *self.places]:
            targets = [sorted(path.targets) for path in self._paths.get(source, ()) if path.targets]
            for chosen in product(*targets):
                groups[frozenset([*self._edges.get(source, ()), *chosen]) - {END}] = None
        hint = "an edge from each to the same one"
        problems = [
            self._problem(self._parted(sorted(group, key=self.places.index)), hint)
            for group in groups
            if len(group) > 1 and self._joined(group) is None
        ]
        for starts, end in self._waiting:
            if not any(self._possible(source) >= starts for source in [START, *self.places]):
                message = f"{end} waits for {names_of(starts)}, which don't have their turns at the same time"
                problems.append(self._problem(message, "edges to all of them from one node"))
        return problems


def _closure(start: str, after: Mapping[str, Iterable[str]]) -> set[str]:
    found, todo = {start}, [start]
    while todo:
        new = set(after.get(todo.pop(), ())) - found
        found |= new
        todo += new
    return found
