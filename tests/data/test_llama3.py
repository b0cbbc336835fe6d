from __future__ import annotations

import pytest

from matrix.data.llama3 import parse_llama3
from matrix.errors import DataError


def turn(role: str, content: str, end: str = "<|eot_id|>") -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n{content}{end}"


SYSTEM, USER, ASSISTANT = turn("system", "Be brief."), turn("user", "2 + 2?\n\nSay it."), turn("assistant", "4")
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2 + 2?\n\nSay it."},
    {"role": "assistant", "content": "4"},
]


@pytest.mark.parametrize("begin", ["", "<|begin_of_text|>", "\n<|begin_of_text|>\n"])
@pytest.mark.parametrize("end", ["", "\n", turn("assistant", "", end=""), turn("assistant", "")])
def test_turns_become_messages_and_the_place_for_the_answer_goes(begin: str, end: str) -> None:
    assert parse_llama3(begin + SYSTEM + USER + end) == MESSAGES[:2]
    assert parse_llama3(begin + SYSTEM + USER + ASSISTANT + end) == MESSAGES


def test_only_the_last_turn_may_be_without_its_end() -> None:
    assert parse_llama3(USER + turn("assistant", "4", end="")) == MESSAGES[1:]
    assert parse_llama3(USER.replace("<|eot_id|>", "<|eot_id|><|end_of_text|>")) == [MESSAGES[1]]
    with pytest.raises(DataError, match=r"message 1 \(user\) doesn't end in <\|eot_id\|>"):
        parse_llama3(turn("user", "2 + 2?", end="") + ASSISTANT)


def test_calls_of_tools_and_their_results() -> None:
    dialogue = turn("assistant", "<|python_tag|>f()", end="<|eom_id|>") + turn("ipython", "7")
    assert parse_llama3(dialogue) == [
        {"role": "assistant", "content": "<|python_tag|>f()"},
        {"role": "ipython", "content": "7"},
    ]


def test_an_empty_message_that_is_not_the_last_assistants_stays() -> None:
    assert parse_llama3(turn("system", "") + turn("user", "")) == [
        {"role": "system", "content": ""},
        {"role": "user", "content": ""},
    ]


@pytest.mark.parametrize("text", ["", "2 + 2?", "a <|eot_id|> b", "<|start_header_id|>", "<|begin_of_text|>Once upon"])
def test_text_without_headers_is_no_dialogue(text: str) -> None:
    assert parse_llama3(text) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"Please: {USER}", r"text stands before the first <\|start_header_id\|>: 'Please:'"),
        (f"{USER}lost{ASSISTANT}", r"text stands after the end of message 1 \(user\): 'lost'"),
        (f"{USER}{ASSISTANT}lost", r"text stands after the end of message 2 \(assistant\): 'lost'"),
        (turn("assistant", ""), "no message but the empty one of the assistant"),
        ("<|begin_of_text|>" + turn("assistant", "", end=""), "no message but the empty one of the assistant"),
    ],
)
def test_text_that_would_get_lost_is_an_error(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_llama3(text)
