"""Coral's topology as a LangGraph graph, for `agents=coral_langgraph`: who is next is its edges' business alone."""

from __future__ import annotations

from typing import Any, TypedDict

from matrix.spec.agents import END


class Seen(TypedDict):
    """What the graph's condition sees of a workflow."""

    history: list[Any]


def graph() -> Any:
    """Make the StateGraph; its nodes are the roles."""
    # langgraph isn't installed everywhere.
    from langgraph import graph as langgraph

    made: Any = langgraph.StateGraph(Seen)
    for role in ("teacher", "answer_extractor", "answer_matcher", "student"):
        made.add_node(role, lambda _: {})
    made.add_edge(langgraph.START, "teacher")
    made.add_edge("teacher", "answer_extractor")
    made.add_edge("student", "answer_extractor")
    made.add_edge("answer_extractor", "answer_matcher")
    places = {"teacher": "teacher", "student": "student", END: langgraph.END}
    made.add_conditional_edges("answer_matcher", after_match, places)
    return made


def after_match(seen: Seen) -> str:
    """The end where the two agree, else the one that hasn't just spoken."""
    *_, extracted, matched = seen["history"]
    if matched.data["agreement"]:
        return END
    return "student" if extracted.data["speaker"] == "teacher" else "teacher"
