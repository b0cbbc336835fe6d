from __future__ import annotations

import pytest

from matrix.agents.teams.natural_reasoning import Question, read_question, read_score, read_yes_or_no


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Yes", True), ("Yes.", True), (" yes\n", True), ("**Yes**", True), ("YES, it does", True), ("Answer: yes!", True),
        ("No", False), ("no.", False), ("No, yes would be wrong", False), ("The answer is no", False),
        ("", None), ("Maybe", None), ("eyes and nose", None), ("I can't say", None), ("Yesterday", None), ("yes'ish", None),
    ],
)  # fmt: skip
def test_yes_or_no(text: str, said: bool | None) -> None:
    assert read_yes_or_no(text) is said


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Score: 7", 7), ("7", 7), ("7.5", 7.5), ("8/10", 8), ("**Score:** 8 / 10", 8), ("10 out of 10", 10), ("I give it a 6.", 6),
        ("Correctness 3/10, in all 9/10", 9), ("score = 4 (of 10)", 4), ("Rating: 10", 10), ("Score: 6.", 6),
        ("Score: 0", None), ("Score: 11", None), ("100", None), ("-3", None), ("", None), ("good", None), ("50%", None), ("2026", None),
        ("Score: 100", None), ("GPT4", None),
    ],
)  # fmt: skip
def test_scores(text: str, score: float | None) -> None:
    assert read_score(text) == score


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"question": "Why?", "answer": "So."}', Question("Why?", "So.")),
        ('{"question": null, "answer": null}', Question("", "")),
        ('{"question": "None.", "answer": "N/A"}', Question("", "")),
        ('{"question": "Why?", "answer": ""}', Question("Why?", "")),
        ('{"question": "Why?"}', Question("Why?", "")),
        ('{"question": "Which of these is none?", "answer": "0"}', Question("Which of these is none?", "0")),
        ("no idea", None),
    ],
)
def test_questions(text: str, found: Question | None) -> None:
    assert read_question(text) == found
