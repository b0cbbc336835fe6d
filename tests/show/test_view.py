from __future__ import annotations

import pytest

from matrix.data.rows import AgentRow, Response, Row, RowError
from matrix.show.view import MAX_OPENING, Part, converse, ending_of, opening_of, prompt_of
from tests.show.conversations import broken, plain, talk


def test_a_team_s_row_is_its_task_and_its_turns() -> None:
    seen = converse(talk(3, 1))
    assert [(turn.who, turn.given) for turn in seen.turns] == [
        ("task", True),
        ("teacher", False),
        ("tools", False),
        ("student", False),
    ]
    assert (seen.id, seen.index, seen.trial, seen.ending, seen.said) == ("q3", 3, 1, "agreement", 3)
    assert seen.turns[0].parts[1] == Part("data", '["Paris","Rome"]', "options")
    assert [part.kind for part in seen.turns[1].parts] == ["reasoning", "text", "tool_call"]
    assert seen.turns[1].parts[2] == Part("tool_call", '{"query":"France","limit":3}', "search")
    assert seen.turns[2].parts[1] == Part("data", "3", "hits")
    assert seen.tokens == {"prompt": 360, "cached": 300, "completion": 120}
    assert (seen.metrics, seen.took_s) == ({"rounds": 2.0, "persuaded": 0.25}, 3.8)


def test_a_plain_row_is_its_messages_and_its_answers() -> None:
    seen = converse(plain(2, "Paris", "Rome"))
    assert [(turn.who, turn.given) for turn in seen.turns] == [
        ("system", True),
        ("user", True),
        ("answer 1 of 2", False),
        ("answer 2 of 2", False),
    ]
    assert [len(turn.calls) for turn in seen.turns] == [0, 0, 1, 0]
    assert (seen.ending, seen.opening, seen.took_s) == ("stop", "Question 2?", 0.75)
    assert seen.scores[0].values == [1.0, 0.0]


def test_tools_pictures_and_what_is_missing_in_messages() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "no JSON {"}}
    messages = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "Look"}, {"type": "image_url", "image_url": {"url": "data:x"}}],
        },
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
        {"role": "user"},
    ]
    turns = converse(Row("a", 0, 0, "error", {"messages": messages}, error=RowError("http_400", "no"))).turns
    assert turns[0].parts == [Part("text", "Look"), Part("data", '{"url":"data:x"}', "image_url")]
    assert turns[1].parts == [Part("tool_call", "no JSON {", "f")]
    assert (turns[2].note, turns[2].parts) == ("c1", [Part("text", "42")])
    assert turns[3].parts == []


def test_reasoning_and_tool_calls_of_several_answers() -> None:
    call = {"function": {"name": "f", "arguments": "{}"}}
    response = Response(["", "b"], ["tool_calls", None], {}, ["think", None], [[call], []], None, 1.0, "u", 1)
    turns = converse(Row("a", 0, 0, "ok", {"prompt": "Once upon"}, response)).turns
    assert turns[0].parts == [Part("text", "Once upon")]
    assert [part.kind for part in turns[1].parts] == ["reasoning", "tool_call"]
    assert (turns[1].note, turns[2].note) == ("tool_calls", "")


def test_long_json_is_laid_out() -> None:
    row = AgentRow("a", 0, 0, "ok", {"task": {"table": [{"name": "x" * 60, "value": number} for number in range(2)]}})
    assert converse(row).turns[0].parts[0].text.startswith('[\n  {\n    "name"')


@pytest.mark.parametrize(
    ("task", "opening"),
    [
        ({"id": "7", "question": "Why?\n  Because."}, "Why? Because."),
        ({"n": 1, "story": "Once"}, "Once"),
        ({"n": 1}, '{"n":1}'),
        ({"text": "x" * 500}, "x" * (MAX_OPENING - 3) + "..."),
    ],
)
def test_the_opening_is_what_was_asked(task: dict[str, object], opening: str) -> None:
    assert opening_of(AgentRow("a", 0, 0, "ok", {"task": task})) == opening


def test_endings() -> None:
    assert [ending_of(row) for row in (talk(0), broken(0), plain(0))] == ["agreement", "error", "stop"]
    assert ending_of(Row("a", 0, 0, "error", {}, error=RowError("data", "bad"))) == "error"


def test_the_prompt_is_the_last_user_message_and_only_its_text() -> None:
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": "data:"}}]
    messages = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": parts},
    ]
    assert prompt_of({"messages": messages}) == "What is this?"
    assert prompt_of({"prompt": "Once"}) == "Once"
    assert prompt_of({}) == ""
