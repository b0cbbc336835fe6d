"""Who is next, and what can be said of it before anything runs."""

from __future__ import annotations

from typing import Any

import pytest

from matrix.agents.load import Loader
from matrix.agents.route import FINISH, TO_END, Move, Route, RouteError, check_route, compile_route
from matrix.agents.state import State, Turn
from matrix.errors import ConfigError
from matrix.spec import AgentsSpec

SILENT = Turn()


def spec(**fields: Any) -> AgentsSpec:
    return AgentsSpec.model_validate({"name": "tested", "file": "team.py", **fields})


def route(**fields: Any) -> Route:
    return compile_route(spec(**fields), Loader(None))


def state(**fields: Any) -> State:
    return State("a", 0, 0, 0, fields.pop("task", {}), **fields)


def places(found: Route, move: Move) -> list[str]:
    return [found.places[place] for place in move.to]


def after(found: Route, role: str, turn: Turn = SILENT, **fields: Any) -> list[str] | tuple[list[str], str | None]:
    move = found.after(found.places.index(role), turn, state(**fields))
    if len(move.to) < 2 and move.join is None:
        return places(found, move)
    return places(found, move), None if move.join is None else found.places[move.join]


def problems(**fields: Any) -> list[str]:
    return [str(problem) for problem in check_route(spec(**fields))]


# --- order ------------------------------------------------------------------------------------------------------------


def test_roles_take_turns_and_begin_again() -> None:
    found = route(order=["a", "b", "c"], ends=["c"])
    assert places(found, found.begin(state())) == ["a"]
    assert [after(found, role) for role in "abc"] == [["b"], ["c"], ["a"]]


def test_without_repeat_the_last_one_is_the_end() -> None:
    found = route(order=["a", "b"], repeat=False)
    assert found.after(1, SILENT, state()) == FINISH
    assert found.after(1, Turn(end="agreement"), state()) == FINISH
    with pytest.raises(RouteError, match="a ends the row"):
        found.after(0, Turn(end="agreement"), state())


@pytest.mark.parametrize("turn", [Turn(end="agreement"), Turn(next="end")])
def test_only_roles_in_ends_may_end_a_row(turn: Turn) -> None:
    found = route(order=["a", "b"], ends=["b"])
    assert found.after(1, turn, state()) == FINISH
    with pytest.raises(RouteError, match=r"a ends the row, and isn't among agents\.ends=\['b'\]"):
        found.after(0, turn, state())


def test_a_role_hands_over_by_name() -> None:
    assert after(route(order=["a", "b", "c"], ends=["c"]), "a", Turn(next="c")) == ["c"]


def test_of_several_places_of_a_role_the_next_one_is_meant() -> None:
    found = route(order=["user", "agent", "tool", "agent"], ends=["agent"])
    assert found.after(1, Turn(next="agent"), state()).to == (3,)
    assert found.after(3, Turn(next="agent"), state()).to == (1,)
    assert found.after(0, Turn(next="agent"), state()).to == (1,)


@pytest.mark.parametrize("to", ["x", ["b"], ["b", "c"], 5, True, {"b": 1}])
def test_a_wrong_hand_over_in_an_order(to: Any) -> None:
    with pytest.raises(RouteError, match=r"a hands over to .*, which agents\.order doesn't have"):
        route(order=["a", "b", "c"], ends=["c"]).after(0, Turn(next=to), state())


# --- edges ------------------------------------------------------------------------------------------------------------


def test_the_first_edge_whose_condition_holds() -> None:
    found = route(
        start="a",
        edges={
            "a": [{"to": "b", "when": "scratch.agreed"}, {"to": "end", "when": "turns > 4"}, "c"],
            "b": "end",
            "c": "a",
        },
    )
    assert places(found, found.begin(state())) == ["a"]
    assert after(found, "a", scratch={"agreed": True}, turns=9) == ["b"]
    assert after(found, "a", turns=5) == []
    assert after(found, "a") == ["c"]
    assert (after(found, "b"), after(found, "c")) == ([], ["a"])


def test_conditions_see_the_row() -> None:
    found = route(
        start="a",
        edges={"a": [{"to": "b", "when": "task.hard and metrics.tries == 2 and last is none"}, "end"], "b": "a"},
    )
    assert after(found, "a", task={"hard": 1}, metrics={"tries": 2}) == ["b"]
    assert after(found, "a") == []


def test_no_condition_holds() -> None:
    found = route(start="a", edges={"a": [{"to": "end", "when": "turns > 100"}]})
    with pytest.raises(RouteError, match="after a no edge's condition holds"):
        found.after(0, SILENT, state())


@pytest.mark.parametrize("when", ["scratch.count > 2", "task.name > 2", "task.list[3].x.y", "1 / turns > 2"])
def test_a_condition_that_fails_on_a_row(when: str) -> None:
    found = route(start="a", edges={"a": [{"to": "a", "when": when}, "end"]})
    with pytest.raises(RouteError, match=r"agents\.edges\.a\.0\.when: .*"):
        found.after(0, SILENT, state(task={"name": "x"}))


def test_a_hand_over_takes_the_edge_that_goes_there() -> None:
    found = route(start="a", edges={"a": ["b", "c", "end"], "b": "a", "c": "end"})
    assert after(found, "a") == ["b"]
    assert after(found, "a", Turn(next="c")) == ["c"]
    assert after(found, "a", Turn(next="end")) == []
    assert after(found, "a", Turn(end="agreement")) == []


@pytest.mark.parametrize("turn", [Turn(next="a"), Turn(end="x"), Turn(next=["a", "end"]), Turn(next=[])])
def test_a_hand_over_without_an_edge(turn: Turn) -> None:
    found = route(start="a", edges={"a": "b", "b": ["c"], "c": "end"})
    with pytest.raises(RouteError, match=r"b hands over to .*, and agents\.edges has no edge for that"):
        found.after(1, turn, state())


@pytest.mark.parametrize("to", [5, 1.5, [5], [["c"]], {"x": 1}, True])
def test_a_hand_over_to_something_that_is_no_name(to: Any) -> None:
    found = route(start="a", edges={"a": "b", "b": ["c"], "c": "end"})
    with pytest.raises(RouteError, match="b hands over to"):
        found.after(1, Turn(next=to), state())


def test_several_at_the_same_time_and_their_join() -> None:
    found = route(start="a", edges={"a": {"to": ["b", "c", "d"], "join": "e"}, "e": "end"})
    assert after(found, "a") == (["b", "c", "d"], "e")
    assert after(found, "a", Turn(next=["c", "b", "d"])) == (["b", "c", "d"], "e")
    assert after(found, "a", Turn(next=["d", "b"])) == (["d", "b"], "e"), "part of them"
    assert after(found, "a", Turn(next="c")) == (["c"], "e"), "one of them still comes to the join"
    with pytest.raises(RouteError, match="hands over to b and x"):
        found.after(0, Turn(next=["b", "x"]), state())


def test_the_same_branch_twice_is_no_part_of_them() -> None:
    found = route(start="a", edges={"a": {"to": ["b", "c", "d"], "join": "e"}, "e": "end"})
    with pytest.raises(RouteError, match="hands over to b and b"):
        found.after(0, Turn(next=["b", "b"]), state())


def test_a_join_that_is_the_end() -> None:
    found = route(start="a", edges={"a": {"to": ["b", "c"], "join": "end"}})
    assert found.after(0, SILENT, state()) == Move((1, 2), TO_END)
    assert found.after(0, Turn(next="c"), state()) == Move((2,), TO_END), "it doesn't go by edges of its own"


# --- before anything runs ---------------------------------------------------------------------------------------------


def test_teams_that_are_whole() -> None:
    assert problems(order=["a", "b"], ends=["b"]) == []
    assert problems(order=["a", "b"], repeat=False) == []
    assert problems(start="a", edges={"a": ["b", "end"], "b": "a"}) == []
    assert problems(start="a", edges={"a": {"to": ["b", "c"], "join": "d"}, "d": "end"}) == []


def test_an_unknown_role_with_the_nearest_name() -> None:
    roles = {"file": None, "roles": {"critic": {}, "writer": {}}}
    assert problems(**roles, order=["writer", "critik"], ends=["critic"]) == [
        "agents.order.1=critik: no such role (did you mean critic?)"
    ]
    found = problems(
        **roles, start="writer", edges={"writer": {"to": ["critic", "x"], "join": "critik"}, "critic": "ende"}
    )
    assert [one.split(" ")[0] for one in found] == [
        "agents.edges.writer.0.to=x:",
        "agents.edges.writer.0.join=critik:",
        "agents.edges.critic.0.to=ende:",
    ]
    assert "did you mean end?" in found[2]


def test_a_role_that_never_has_a_turn() -> None:
    assert problems(order=["a"], roles={"b": {}}, repeat=False) == [
        "agents.roles.b: never has a turn: agents.order doesn't name it (name it, or leave it out)"
    ]
    found = problems(start="a", edges={"a": "end", "b": "end"})
    assert found == ["agents.roles.b: is unreachable: no edge leads to it from a (an edge to it, or leave it out)"]


def test_roles_of_a_file_that_only_ends_names_are_no_roles() -> None:
    assert any("agents.ends.0=x: no such role" in one for one in problems(order=["a"], ends=["x"]))


def test_no_way_to_the_end() -> None:
    assert "no way to the end: it goes round" in problems(order=["a", "b"])[0]
    found = problems(start="a", edges={"a": ["b", "c"], "b": "b", "c": "end"})
    assert found == ["agents.edges.b: no way to the end from here (agents.edges.b=end)"]
    assert problems(start="a", edges={"a": "b"}) == [
        "agents.edges.a: no way to the end from here (agents.edges.a=end)",
        "agents.edges.b: no way to the end: no edge leads on (agents.edges.b=end)",
    ]


def test_a_role_called_end() -> None:
    assert any("stands for the end of a row" in one for one in problems(order=["a"], roles={"a": {}, "end": {}}))


def test_a_condition_with_a_syntax_error() -> None:
    with pytest.raises(ConfigError, match=r"agents\.edges\.a\.0\.when=turns >: not a Jinja expression"):
        route(start="a", edges={"a": [{"to": "end", "when": "turns >"}]})
