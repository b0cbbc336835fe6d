"""A LangGraph graph as a route: what its edges say is what happens, and what it can't do is said before the run."""

from __future__ import annotations

import inspect
import operator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict

import pytest

pytest.importorskip("langgraph.graph", reason="langgraph is not installed: pip install 'matrix-llm[langgraph]'")

from langchain_core.runnables import RunnableConfig, RunnableLambda
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command, Send
from pydantic import BaseModel

from matrix.agents.langgraph import GraphRoute
from matrix.agents.route import FINISH, Move, RouteError
from matrix.agents.state import State, Turn
from matrix.data.rows import Entry
from matrix.errors import ConfigError


class Seen(TypedDict):
    turns: int
    scratch: dict[str, Any]


def graph(*nodes: str, schema: Any = Seen, **edges: Any) -> StateGraph:
    """A graph with these nodes; `a=["b", "c"]` is an edge to each, `a=function` a conditional edge."""

    def never(state: Any) -> None:
        pytest.fail("a node of the graph was called")

    made = StateGraph(schema)
    for name in nodes:
        made.add_node(name, never)
    for source, targets in edges.items():
        begin = START if source == "start" else source
        if not isinstance(targets, str | list):
            made.add_conditional_edges(begin, targets)
            continue
        for target in [targets] if isinstance(targets, str) else targets:
            made.add_edge(begin, target)
    return made


def state(*, turns: int = 0, **scratch: Any) -> State:
    history = [Entry("a", "said", 0.0, 0.0)] if turns else []
    return State("row", 0, 0, 0, {"question": "?"}, history, scratch, turns=turns)


class Walker:
    """Follows a route by the names of its roles."""

    def __init__(self, made: object, *roles: str) -> None:
        self.route = GraphRoute(made, roles or ("a", "b", "c", "d"))

    async def start(self, **scratch: Any) -> tuple[list[str], str | None]:
        return await self._names(self.route.begin(state(**scratch)))

    async def after(self, role: str, turn: Turn | None = None, **scratch: Any) -> tuple[list[str], str | None]:
        place = self.route.places.index(role)
        return await self._names(self.route.after(place, turn or Turn(), state(turns=1, **scratch)))

    async def _names(self, move: Any) -> tuple[list[str], str | None]:
        move = await move if inspect.isawaitable(move) else move
        places = self.route.places
        return [places[one] for one in move.to], None if move.join is None else places[move.join]


async def test_plain_edges() -> None:
    walk = Walker(graph("a", "b", start="a", a="b", b=END), "a", "b")
    assert await walk.start() == (["a"], None)
    assert await walk.after("a") == (["b"], None)
    assert walk.route.after(1, Turn(), state()) == FINISH
    assert walk.route.places == ["a", "b"]


async def test_a_node_without_edges_is_the_end() -> None:
    walk = Walker(graph("a", "b", start="a", a="b"), "a", "b")
    assert await walk.after("b") == ([], None)


async def test_a_path_function_sees_the_workflow() -> None:
    def path(seen: dict[str, Any]) -> str:
        assert set(seen) == {"task", "history", "scratch", "metrics", "last", "turns"}
        assert seen["last"].text == "said"
        assert seen["history"] == [seen["last"]]
        return "b" if seen["task"]["question"] == seen["scratch"].get("ask") else END

    walk = Walker(graph("a", "b", schema=dict, start="a", a=path, b="a"), "a", "b")
    assert await walk.after("a", ask="?") == (["b"], None)
    assert await walk.after("a") == ([], None)


class Model(BaseModel):
    turns: int
    scratch: dict[str, Any] = {}


@dataclass
class Data:
    scratch: dict[str, Any]


@pytest.mark.parametrize("schema", [Model, Data])
async def test_states_of_other_kinds_are_made_for_it(schema: Any) -> None:
    def path(seen: Any) -> str:
        assert isinstance(seen, schema)
        return str(seen.scratch["to"])

    walk = Walker(graph("a", "b", schema=schema, start="a", a=path, b="a"), "a", "b")
    assert await walk.after("a", to="b") == (["b"], None)


async def test_a_path_function_may_have_a_state_of_its_own() -> None:
    def path(seen: Model) -> str:
        return str(seen.scratch["to"])

    walk = Walker(graph("a", "b", start="a", a=path, b=END), "a", "b")
    assert await walk.after("a", to="b") == (["b"], None)


async def test_async_path_functions_and_runnables() -> None:
    async def later(seen: Seen) -> str:
        return str(seen["scratch"]["to"])

    class Chooser:
        def __call__(self, seen: Seen) -> str:
            return str(seen["scratch"]["to"])

    def now(seen: Seen) -> str:
        return str(seen["scratch"]["to"])

    for path in (later, RunnableLambda(now), Chooser()):
        made = graph("a", "b", start=path, b="a")
        made.add_conditional_edges("a", path)
        walk = Walker(made, "a", "b")
        assert await walk.start(to="b") == (["b"], None)
        assert await walk.after("a", to="b") == (["b"], None)
        assert await walk.after("a", to=END) == ([], None)
        assert await walk.after("a", to="end") == ([], None)


async def test_path_maps_and_literals() -> None:
    made = graph("a", "b", "c", start="a", b=END, c=END)
    made.add_conditional_edges("a", lambda seen: seen["scratch"]["good"], {True: "b", False: "c", None: END})
    walk = Walker(made, "a", "b", "c")
    assert walk.route.successors("a") == {"b", "c", "end"}
    assert await walk.after("a", good=True) == (["b"], None)
    assert await walk.after("a", good=False) == (["c"], None)
    assert await walk.after("a", good=None) == ([], None)
    with pytest.raises(RouteError, match="gave 3; its path map has True, False, None"):
        await walk.after("a", good=3)

    def path(seen: Seen) -> Literal["b", "__end__"]:
        return seen["scratch"]["to"]

    walk = Walker(graph("a", "b", start="a", a=path, b=END), "a", "b")
    assert walk.route.successors("a") == {"b", "end"}


async def test_fan_out_and_join() -> None:
    made = graph("a", "b", "c", "d", start="a", a=["c", "b"], b="d", c="d", d=END)
    walk = Walker(made)
    assert await walk.after("a") == (["b", "c"], "d")
    made = graph("a", "b", "c", "d", start="a", a=["b", "c"], d=END)
    made.add_edge(["b", "c"], "d")
    walk = Walker(made)
    assert await walk.after("a") == (["b", "c"], "d")
    with pytest.raises(RouteError, match="d waits for b and c, and b alone had its turn"):
        await walk.after("b")
    walk = Walker(graph("a", "b", "c", start="a", a=["b", "c", END], b=END), "a", "b", "c")
    assert walk.route.after(0, Turn(), state()) == Move((1, 2), None)
    walk = Walker(graph("a", "b", start=["a", "b"], a=END, b=END), "a", "b")
    assert await walk.start() == (["a", "b"], None)


async def test_a_path_function_that_gives_several() -> None:
    walk = Walker(graph("a", "b", "c", "d", start="a", a=lambda seen: seen["scratch"]["to"], b="d", c="d", d=END))
    assert await walk.after("a", to=["b", "c"]) == (["b", "c"], "d")
    assert await walk.after("a", to=["c"]) == (["c"], None)
    assert await walk.after("a", to=["c", END, "c"]) == (["c"], None)
    assert await walk.after("a", to=[]) == ([], None)
    message = "b and d have their turns at the same time, and lead to different places: b leads to d; d leads to end"
    with pytest.raises(RouteError, match=message):
        await walk.after("a", to=["b", "d"])
    # An edge and a path function of one node are both followed.
    made = graph("a", "b", "c", "d", start="a", a="b", b="d", c="d", d=END)
    made.add_conditional_edges("a", lambda seen: "c", ["c"])
    assert await Walker(made).after("a") == (["b", "c"], "d")


async def test_what_a_path_function_must_not_give() -> None:
    to: list[Any] = []
    walk = Walker(graph("a", "b", start="a", a=lambda seen: to[0], b=END), "a", "b")
    for given, message in [
        ("x", "gave 'x', which is no node; there are: a, b, end"),
        (None, "gave None, which is no node"),
        (Send("b", {}), r"gave a Send, which a route can't follow \(give names of nodes\)"),
        (Command(goto="b"), "gave a Command, which a route can't follow"),
    ]:
        to[:] = [given]
        with pytest.raises(RouteError, match=message):
            await walk.after("a")

    def broken(seen: Seen) -> str:
        return seen["scratch"]["to"]

    async def broken_later(seen: Seen) -> str:
        return seen["scratch"]["to"]

    for path in (broken, broken_later):
        walk = Walker(graph("a", "b", start="a", a=path, b=END), "a", "b")
        with pytest.raises(RouteError, match=rf"the graph's {path.__name__} fails with KeyError: 'to'"):
            await walk.after("a")


async def test_a_role_may_hand_over_along_the_edges() -> None:
    def path(seen: Seen) -> Literal["b", "c", "__end__"]:
        return "b"

    walk = Walker(graph("a", "b", "c", "d", start="a", a=path, b="d", c="d", d="a"))
    assert await walk.after("a", Turn(next="c")) == (["c"], None)
    assert await walk.after("a", Turn(next=["b", "c"])) == (["b", "c"], "d")
    assert await walk.after("a", Turn(next="end")) == ([], None)
    assert await walk.after("a", Turn(end="agreement")) == ([], None)
    with pytest.raises(RouteError, match="a hands over to d, and the graph leads from it to b and c and end"):
        await walk.after("a", Turn(next="d"))
    with pytest.raises(RouteError, match="b hands over to end, and the graph leads from it to d"):
        await walk.after("b", Turn(end="agreement"))
    with pytest.raises(RouteError, match="a hands over to nobody"):
        await walk.after("a", Turn(next=[]))


def test_compiled_graphs_and_functions() -> None:
    made = graph("a", "b", start="a", a="b", b=END)
    assert GraphRoute(made.compile(), ["a", "b"]).places == ["a", "b"]
    assert GraphRoute(lambda: made, ["a", "b"]).places == ["a", "b"]
    assert GraphRoute(made.compile, ["a", "b"]).places == ["a", "b"]


def refused(made: object, *roles: str) -> list[str]:
    with pytest.raises(ConfigError) as found:
        GraphRoute(made, roles, "mine:graph")
    return [str(one).removeprefix("agents.graph=mine:graph: ") for one in found.value.problems]


def needs(state: Any, config: RunnableConfig) -> str: ...  # type: ignore[empty-body]
def sends(state: Any) -> list[Send]: ...  # type: ignore[empty-body]
def commands(state: Any) -> Command[Literal["b"]]: ...  # type: ignore[empty-body]
def chats(state: MessagesState) -> str: ...  # type: ignore[empty-body]
def fails() -> StateGraph: raise ValueError("no graph today")  # fmt: skip


async def later() -> StateGraph: ...  # type: ignore[empty-body]


def test_what_is_no_graph() -> None:
    hint = "a StateGraph, or a function without arguments that gives one"
    assert refused(3) == [f"is a int ({hint})"]
    assert refused(lambda: 3) == [f"is a int ({hint})"]
    assert refused(later) == [f"is neither a graph nor a plain function ({hint})"]
    assert refused(StateGraph) == [f"is neither a graph nor a plain function ({hint})"]
    assert refused(fails) == [f"fails with ValueError: no graph today ({hint})"]


def test_nodes_and_roles_are_the_same() -> None:
    assert refused(
        graph("teacher", "critic", start="teacher", teacher="critic", critic=END), "teacher", "critics", "x"
    ) == [
        "its node critic is no role (did you mean agents.roles.critics?)",
        "agents.roles.critics: never has a turn: the graph has no such node (add it, or leave it out)",
        "agents.roles.x: never has a turn: the graph has no such node (add it, or leave it out)",
    ]


def test_edges_lead_somewhere() -> None:
    assert refused(graph("a", "b", start="a", a="bb", b=END), "a", "b") == [
        "an edge of a names bb, which is no node (did you mean b?)"
    ]
    assert refused(graph("a", a=END), "a") == ["nobody begins (add_edge(START, ...))"]
    assert refused(graph("a", "b", "c", start="a", a=END, b="a", c="c"), "a", "b", "c") == [
        "agents.roles.b: is unreachable: no edge of the graph leads to it (an edge to it, or leave it out)",
        "agents.roles.c: is unreachable: no edge of the graph leads to it (an edge to it, or leave it out)",
    ]
    assert refused(graph("a", "b", start="a", a="b", b="a"), "a", "b") == [
        "no way to the end from a (an edge to END somewhere after it)",
        "no way to the end from b (an edge to END somewhere after it)",
    ]


def test_fan_outs_come_together() -> None:
    parted = "b and c have their turns at the same time, and lead to different places: b leads to d; c leads to end"
    hint = "(an edge from each to the same one)"
    assert refused(graph("a", "b", "c", "d", start="a", a=["b", "c"], b="d", d=END), *"abcd") == [f"{parted} {hint}"]
    # A branch that chooses by itself where to go has no one place to come together.
    made = graph("a", "b", "c", "d", start="a", a=["b", "c"], c="d", d=END)
    made.add_conditional_edges("b", lambda seen: "d", ["d", END])
    assert "b leads to d and end; c leads to d" in refused(made, *"abcd")[0]
    made = graph("a", "b", "c", "d", start="a", a="b", b="d", d=END)
    made.add_conditional_edges("a", lambda seen: "c", ["c"])
    assert refused(made, *"abcd") == [f"{parted} {hint}"]
    made = graph("a", "b", "c", "d", start="a", a="b", b="c", d=END)
    made.add_edge(["b", "c"], "d")
    assert "d waits for b and c, which don't have their turns at the same time" in refused(made, *"abcd")[-1]
    # Half of those that it waits for.
    made = graph("a", "b", "c", "d", start="a", a=["b", "d"], b="c", c=END)
    made.add_edge(["b", "d"], "c")
    made.add_edge(["b", "c"], "c")
    assert refused(made, *"abcd")


def test_what_a_route_does_not_do_is_refused() -> None:
    made = graph("b", start="b", b=END)
    made.add_node("a", lambda state: None, destinations=("b",))
    made.add_edge("b", "a")
    assert refused(made, "a", "b") == [
        "its node a hands over by Command, and is never called (add_conditional_edges, or Turn(next=...) of the role)"
    ]
    made = graph("b", start="b", b=END)
    made.add_node("a", graph("x", start="x", x=END).compile())
    made.add_edge("b", "a")
    assert refused(made, "a", "b") == ["its node a is a graph of its own (put its nodes into this one)"]
    made = graph("b", start="b", b=END)
    made.add_node("a", lambda state: None, defer=True)
    made.add_edge("b", "a")
    assert refused(made, "a", "b") == ["its node a is deferred, or handles errors, which no route does"]
    made = graph("a", start="a", a=END)
    assert refused(made.compile(interrupt_before=["a"]), "a") == [
        "stops for interrupts, which no route does (leave them out, or don't compile it)"
    ]


def test_path_functions_that_cannot_be_called() -> None:
    for path, message in [
        (needs, "it takes config, and gets the state alone"),
        (sends, "it gives Send or Command, which carry states of their own: give names of nodes"),
        (commands, "it gives Send or Command, which carry states of their own: give names of nodes"),
        (
            chats,
            "its state has messages, and a route knows task and history and scratch and metrics and last and turns",
        ),
    ]:
        made = graph("a", "b", start="a", a=path, b=END)
        assert refused(made, "a", "b") == [f"the edges of a by {path.__name__}: {message}"]


class Reduced(TypedDict):
    history: Annotated[list[Any], operator.add]
    last: Any


async def test_reducers_do_no_harm() -> None:
    walk = Walker(graph("a", schema=Reduced, start="a", a=lambda seen: seen["last"] and END), "a")
    assert await walk.after("a") == ([], None)


def test_the_order_of_several_is_that_of_the_nodes() -> None:
    names = [f"n{number}" for number in range(20)]
    made = graph("a", *names, "z", start="a", a=names[::-1], z=END, **dict.fromkeys(names, "z"))
    route = GraphRoute(made, ["a", *names, "z"])
    assert route.after(0, Turn(), state()) == Move(tuple(range(1, 21)), 21)
