from __future__ import annotations

import time

import pytest

from matrix.agents.teams.extraction import read_fields

NAMES = ("question", "answer")


@pytest.mark.parametrize(
    ("text", "question", "answer"),
    [
        ('{"question": "Why?", "answer": "Because."}', "Why?", "Because."),
        ('Here it is:\n```json\n{"question": "Why?", "answer": "Because."}\n```\nDone.', "Why?", "Because."),
        ('{"Question": "Why?", "ANSWER": 42}', "Why?", "42"),
        ('{"note": 1} {"question": " Why? ", "answer": ["a", "b"]}', "Why?", '["a", "b"]'),
        ('{"question": null, "answer": null}', "", ""),
        ('{"result": {"question": "Why?", "answer": "So."}}', "Why?", "So."),
        ('{"question": "Two\nlines?", "answer": "yes"}', "Two\nlines?", "yes"),
        (r'{"question": "What is $\frac{1}{2}$?", "answer": "\boxed{0.5}"}', r"What is $\frac{1}{2}$?", r"\boxed{0.5}"),
        (r'{"question": "a\nb \\frac \"c\" \u00e9 d\te", "answer": "\theta \times \nabla \nu \( x \)"}', 'a\nb \\frac "c" é d\te', r"\theta \times \nabla \nu \( x \)"),
        (r'{"question": "one\nequation\ttwo\rightarrow", "answer": "\neq"}', "one\nequation\ttwo\\rightarrow", r"\neq"),
        ("<question>Why < 3?</question>\n<answer>Because.</answer>", "Why < 3?", "Because."),
        ("<QUESTION>Why?<answer>it was cut off", "Why?", "it was cut off"),
        ("Question: Why?\nAnswer: Because\nof that.", "Why?", "Because\nof that."),
        ("**Question:** Why?\n\n**Answer**: Because.", "Why?", "Because."),
        ('{"question": "cut off', None, None),
        ("I'd be happy to help!", None, None),
        ("Answer: 4", None, None),
        ("", None, None),
    ],
)  # fmt: skip
def test_forms(text: str, question: str | None, answer: str | None) -> None:
    found = read_fields(text, NAMES)
    assert found == (None if question is None else {"question": question, "answer": answer})


def test_the_answer_may_be_missing() -> None:
    assert read_fields('{"question": "Why?"}', NAMES) == {"question": "Why?"}
    assert read_fields("<question>Why?</question>", NAMES) == {"question": "Why?"}


@pytest.mark.parametrize("part", ["{", '{"a":', "[", "<question", "question:", "\\", '{"question": {', "{}**"])
def test_replies_that_repeat_themselves_take_no_time(part: str) -> None:
    start = time.process_time()
    read_fields(part * 20_000, NAMES)
    assert time.process_time() - start < 1
