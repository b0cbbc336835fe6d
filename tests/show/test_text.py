from __future__ import annotations

from matrix.data.rows import AgentRow, Entry, Row
from matrix.show.overview import table, totals_lines
from matrix.show.text import harmless, plain_text, spans
from matrix.show.totals import Totals
from tests.show.conversations import broken, plain, talk


def shown(row: Row) -> str:
    return "".join(span.text for span in spans(row))


def test_a_whole_conversation() -> None:
    assert shown(talk(3)) == (
        "q3  trial 0, place 3 of the input\n"
        "\ntask\n"
        "  question: What is the capital of country 3?\n"
        '  options: ["Paris","Rome"]\n'
        "  answer: A\n"
        "\n1 teacher  at 0.0 s, took 1.2 s\n"
        "  I should look it up.\n  Then answer.\n"
        "  It is Paris.\n"
        '  -> search({"query":"France","limit":3})\n'
        "  · llm: 1.2 s, 120 + 40 tokens, http://10.0.0.5:8000/v1\n"
        "\n2 tools  at 1.2 s, took 0.010 s\n"
        "  France: capital Paris\n"
        "  hits: 3\n"
        "  · search: 0.004 s\n"
        "\n3 student  at 1.3 s, took 2.5 s\n"
        "  I agree.\n  It is A.\n"
        "  · llm: 2.0 s, 120 + 40 tokens, http://10.0.0.5:8000/v1  replayed\n"
        "  · llm: 0.500 s, 120 + 40 tokens, 3 tries, http://10.0.0.5:8000/v1\n"
        "\nok  agreement\n"
        "  score   math: 1 (A)\n"
        "  metric  rounds: 2\n"
        "  metric  persuaded: 0.25\n"
        "  tokens  360 prompt (300 cached), 120 completion\n"
        "  took    3.8 s\n"
    )


def test_an_error_comes_with_its_traceback() -> None:
    text = shown(broken(4))
    assert "  · llm: 0.500 s  timeout: no answer in 60 s\n" in text
    assert "\nerror\n" in text
    assert text.endswith(
        "  Traceback (most recent call last):\n    File \"team.py\", line 7, in act\n  KeyError: 'answer'\n"
    )


def test_a_plain_row() -> None:
    text = shown(plain(2, "Paris", "Rome"))
    assert "\nuser\n  Question 2?\n" in text
    assert "\n2 answer 2 of 2  stop\n  Rome\n" in text
    assert "exact: 1 (Paris), 0 (Rome)" in text
    assert "2 tries" in text


def test_every_agent_has_a_colour_of_its_own() -> None:
    colours = {span.text: span.style for span in spans(talk(0)) if span.text in ("teacher", "tools", "student")}
    assert len(set(colours.values())) == 3


def test_a_model_can_t_command_the_terminal() -> None:
    row = AgentRow(
        "\x1b]0;t\x07", 0, 0, "ok", {"task": {"\x1b[2J": "a\x1b[31m"}}, history=[Entry("\x9b", "x\r\x08\u202ey\tz")]
    )
    text = shown(row)
    assert not any(ord(sign) < 32 and sign not in "\n\t" for sign in text)
    assert not any(0x7F <= ord(sign) < 0xA0 for sign in text)
    assert "\u202e" not in text
    assert harmless("a\x1b[0m\n\tb") == "a␛[0m\n\tb"


def test_the_plain_text_is_what_was_said() -> None:
    assert plain_text(talk(1)) == (
        '[task]\nquestion: What is the capital of country 1?\noptions: ["Paris","Rome"]\nanswer: A\n\n'
        "[teacher]\n(reasoning) I should look it up.\nThen answer.\nIt is Paris.\n"
        '-> search({"query":"France","limit":3})\n\n'
        "[tools]\nFrance: capital Paris\nhits: 3\n\n"
        "[student]\nI agree.\nIt is A."
    )


def test_the_overview_s_lines() -> None:
    lines = "".join(span.text for span in table([talk(0), broken(1, 12), plain(2)], 0)).splitlines()
    assert lines == [
        "id  trial  status  termination  turns  tokens  seconds  asked",
        "q0      0  ok      agreement        3     480      3.8  What is the capital of country 0?",
        "q1     12  error   error            1      10      0.5  Unanswerable question 1",
        "r2      0  ok      stop             1      39      0.8  Question 2?",
    ]
    cut = "".join(span.text for span in table([talk(0)], 60)).splitlines()
    assert [len(line) for line in cut] == [60, 60]
    assert list(table([], 60)) == []


def test_a_row_stays_on_its_line() -> None:
    row = AgentRow("a\nb", 0, 0, "ok", {"task": {"text": "c\r\nd\x1b[2J"}}, termination="e\nf")
    (_, line) = "".join(span.text for span in table([row], 0)).splitlines()
    assert line == "a b      0  ok      e f              0       0      0.0  c d␛[2J"


def test_totals() -> None:
    totals = Totals()
    for row in (talk(0), talk(1, right=False), broken(2)):
        totals.add(row)
    assert "".join(span.text for span in totals_lines(totals)) == (
        "rows         3, 1 of them with an error\n"
        "termination  agreement 2, error 1\n"
        "errors       exception 1\n"
        "scores       math 0.5\n"
        "metrics      rounds 2, persuaded 0.25\n"
        "tokens       730 prompt, 240 completion\n"
        "mean row     2.3 turns, 2.7 s\n"
    )
