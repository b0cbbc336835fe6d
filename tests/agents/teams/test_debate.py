from __future__ import annotations

import pytest

from matrix.agents import Entry
from matrix.agents.teams.debate import answers, majority, read_verdict
from matrix.data.rows import Score


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Verdict: 42", "42"), ("All agree.\n**Verdict:** 42 apples", "42 apples"), ("verdict: -5", "-5"), ("Verdict:\n7", "7"),
        ("Verdict: 1\nNo, wait. Verdict: 2", "2"), ("Verdict: continue", None), ("Verdict: Continue.", None),
        ("Verdict: **continue**", None), ("Verdict:", None), ("42", None), ("", None),
    ],
)  # fmt: skip
def test_verdicts(text: str, verdict: str | None) -> None:
    assert read_verdict(text) == verdict


def turn(agent: str, number: int, answer: str | None, right: float = 0.0) -> Entry:
    return Entry(agent, "", data={"round": number, "answer": answer, "right": right})


def test_turns_of_a_round_come_by_name() -> None:
    history = [Entry("judge", ""), turn("c", 1, "1"), turn("a", 1, "2"), turn("b", 2, "3"), turn("b", 1, "4")]
    assert [one.agent for one in answers(history, 1)] == ["a", "b", "c"]


def test_the_majority_wins_and_of_equals_the_first() -> None:
    assert majority([turn("a", 1, "5"), turn("b", 1, "6", 1.0), turn("c", 1, "6", 1.0)]) == (Score([1.0], ["6"]), 2)
    assert majority([turn("a", 1, "5"), turn("b", 1, "6", 1.0), turn("c", 1, None)]) == (Score([0.0], ["5"]), 1)
    assert majority([turn("a", 1, None), turn("b", 1, None)]) == (Score([0.0], [None]), 0)
