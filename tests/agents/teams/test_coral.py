from __future__ import annotations

from matrix.agents import Entry
from matrix.agents.teams.coral import recent, tokens
from matrix.data.rows import Call


def said(length: int) -> Entry:
    return Entry("teacher", "x", calls=[Call("llm", 0.1, {"completion_tokens": length})])


def test_tokens_are_counted_by_the_server_or_guessed() -> None:
    assert tokens(said(7)) == 7
    assert tokens(Entry("teacher", "x" * 9)) == 3
    assert tokens(Entry("teacher", "")) == 0


def test_a_reasoner_is_sent_what_fits() -> None:
    turns = [said(length) for length in (50, 10, 20, 30)]
    assert recent(turns, None) == turns
    assert recent(turns, 110) == turns
    assert recent(turns, 60) == turns[1:]
    assert recent(turns, 59) == turns[2:]
    assert recent(turns, 5) == turns[3:], "the last turn always is"
    assert recent([], 5) == []
