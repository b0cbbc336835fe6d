from __future__ import annotations

from matrix.data.rows import Row
from matrix.tracking.samples import MAX_CHARS, tabulate
from tests.show.conversations import broken, talk
from tests.tracking.tracked_rows import bad_row, good_row


def test_the_table_has_the_columns_of_every_scorer_and_gaps_where_a_row_has_nothing() -> None:
    columns, data = tabulate([good_row(0, value=0.5), bad_row(1)])
    assert columns == ["id", "trial", "status", "prompt", "text", "scores/exact", "error"]
    assert data == [
        ["r0", 0, "ok", "Question 0", "Paris", 0.5, None],
        ["r1", 0, "error", "Question 1", None, None, "timeout: no answer in 5 s"],
    ]


def test_long_texts_are_cut_and_say_so() -> None:
    _, [cells] = tabulate([good_row(0, "x" * (MAX_CHARS + 7))])
    assert cells[4] == "x" * MAX_CHARS + "... (7 characters more)"


def test_the_prompt_is_the_last_user_message_and_only_its_text() -> None:
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": "data:"}}]
    messages = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "It is"},
    ]
    _, data = tabulate([Row("a", 0, 0, "ok", {"messages": messages}), Row("b", 1, 0, "error", {})])
    assert [cells[3] for cells in data] == ["What is this?", ""]


def test_a_team_s_rows_are_conversations_with_their_figures() -> None:
    right, failed = talk(0, said="It is Paris."), broken(1, trial=2)
    failed.metrics = {"asked": 1.0}
    columns, data = tabulate([right, failed])
    assert columns == [
        *("id", "trial", "status", "termination", "turns", "conversation"),
        *("metrics/asked", "metrics/persuaded", "metrics/rounds", "scores/math", "tokens", "took_s", "error"),
    ]
    assert [cells[:5] for cells in data] == [["q0", 0, "ok", "agreement", 3], ["q1", 2, "error", "error", 1]]
    assert [cells[6:] for cells in data] == [
        [None, 0.25, 2.0, 1.0, 480, 3.8, None],
        [1.0, None, None, None, 10, 0.5, "exception: student: KeyError: 'answer'"],
    ]
    assert data[0][5].startswith("[task]\nquestion: What is the capital of country 0?")
    assert "[teacher]" in data[0][5]
    assert "It is Paris." in data[0][5]


def test_long_conversations_are_cut() -> None:
    _, [cells] = tabulate([talk(0, said="x" * 2 * MAX_CHARS)])
    assert len(cells[5]) < MAX_CHARS + 40
    assert cells[5].endswith(" characters more)")
