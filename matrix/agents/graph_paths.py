"""What LangGraph keeps of a graph's edges, read for a route."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel

from matrix.agents.route import RouteError
from matrix.spec.agents import END

VIEW = ("task", "history", "scratch", "metrics", "last", "turns")
"""What path functions see of a workflow."""

START = "__start__"
"""LangGraph's name for what comes before the first node."""

_END = "__end__"


@dataclass(frozen=True)
class GraphPath:
    """A conditional edge.

    Attributes:
        name: LangGraph's name of its function.
        targets: Where it may lead; None: anywhere.
        problem: Why it can't be followed; empty if it can.
    """

    name: str
    targets: frozenset[str] | None
    problem: str
    _ends: Mapping[Hashable, str] | None
    _choose: Callable[[Any], Any]
    _state: Callable[[Mapping[str, Any]], Any]

    @classmethod
    def of(cls, name: str, branch: Any, builder: Any) -> GraphPath:
        """Read one of `builder.branches`."""
        schema = branch.input_schema or builder.state_schema
        # A plain function is called as it is; LangGraph's wrapper would report each call to its tracers.
        wraps = hasattr(branch.path, "func_accepts")
        function = (branch.path.func or branch.path.afunc) if wraps else branch.path.ainvoke
        problem = _unfit(function, list(builder.schemas[schema])) if wraps else ""
        ends = branch.ends and {key: _name(end) for key, end in branch.ends.items()}
        targets = frozenset(ends.values()) if ends else None
        return cls(name, targets, problem, ends, function, _state_of(schema))

    def choose(self, view: Mapping[str, Any]) -> Any:
        """What its function gives now; to be awaited if it is async.

        Raises:
            RouteError: The function fails.
        """
        try:
            given = self._choose(self._state(view))
        except Exception as error:
            raise self._failed(error) from error
        return self._awaited(given) if inspect.isawaitable(given) else given

    async def _awaited(self, given: Awaitable[Any]) -> Any:
        try:
            return await given
        except Exception as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> RouteError:
        return RouteError(f"the graph's {self.name} fails with {type(error).__name__}: {error}")

    def places(self, given: Any, nodes: Collection[str]) -> list[str]:
        """Where that leads.

        Raises:
            RouteError: Nowhere.
        """
        return [self._place(one, nodes) for one in (given if isinstance(given, list | tuple) else [given])]

    def _place(self, given: Any, nodes: Collection[str]) -> str:
        if self._ends is not None:
            if isinstance(given, Hashable) and given in self._ends:
                return self._ends[given]
            raise RouteError(f"{self.name} gave {_shown(given)}; its path map has {', '.join(map(repr, self._ends))}")
        if isinstance(given, str) and ((place := _name(given)) == END or place in nodes):
            return place
        raise RouteError(f"{self.name} gave {_shown(given)}, which is no node; there are: {', '.join([*nodes, END])}")


def graph_edges(builder: Any) -> tuple[dict[str, list[str]], list[tuple[frozenset[str], str]]]:
    """Plain edges by their source, and those that wait for several sources, in the order of the nodes.

    LangGraph keeps them in sets, whose order differs from process to process, and a replay has to do the same again.
    """
    order = {name: number for number, name in enumerate(builder.nodes)}
    plain = {*builder.edges, *((starts[0], end) for starts, end in builder.waiting_edges if len(set(starts)) == 1)}
    edges: dict[str, list[str]] = {}
    for source, target in sorted(plain, key=lambda edge: (order.get(edge[1], -1), edge)):
        edges.setdefault(source, []).append(_name(target))
    waiting = {(frozenset(starts), _name(end)) for starts, end in builder.waiting_edges if len(set(starts)) > 1}
    return edges, sorted(waiting, key=lambda each: (sorted(each[0]), each[1]))


def _unfit(function: Callable[..., Any], fields: Sequence[str]) -> str:
    parameters = list(inspect.signature(function).parameters.values())
    needed = [one.name for one in parameters[1:] if one.default is one.empty and one.kind is not one.VAR_KEYWORD]
    if needed:
        return f"it takes {names_of(needed)}, and gets the state alone"
    foreign = [name for name in fields if name not in VIEW and name != "__root__"]
    if foreign:
        return f"its state has {names_of(foreign)}, and a route knows {names_of(VIEW)}"
    try:
        given = get_type_hints(function).get("return")
    except (NameError, TypeError):
        return ""
    if {"Send", "Command"} & {getattr(one, "__name__", "") for one in _parts(given)}:
        return "it gives Send or Command, which carry states of their own: give names of nodes"
    return ""


def _parts(annotation: Any) -> list[Any]:
    return [annotation, *(part for one in get_args(annotation) for part in _parts(one))]


def _state_of(schema: Any) -> Callable[[Mapping[str, Any]], Any]:
    """Makes what a path function gets: a dict for TypedDict, else an instance."""
    if inspect.isclass(schema) and issubclass(schema, BaseModel):
        return lambda view: schema.model_validate({name: view[name] for name in schema.model_fields})
    if inspect.isclass(schema) and is_dataclass(schema):
        return lambda view: schema(**{name: view[name] for name in schema.__dataclass_fields__})
    return dict


def _name(node: str) -> str:
    return END if node == _END else node


def _shown(given: object) -> str:
    kind = type(given).__name__
    return f"a {kind}, which a route can't follow (give names of nodes)" if kind in ("Send", "Command") else repr(given)


def names_of(names: Iterable[str]) -> str:
    """Names in a sentence."""
    return " and ".join(sorted(names) if isinstance(names, frozenset) else names)
