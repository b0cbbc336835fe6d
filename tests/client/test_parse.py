from __future__ import annotations

from typing import Any

import orjson
import pytest

from matrix.client.parse import Origin, error_message, parse_chat, parse_completion, parse_embeddings
from matrix.data.rows import Response

ORIGIN = Origin(latency_s=0.5, endpoint="http://e/v1", attempts=2)


def parse(answer: Any) -> Response:
    raw = answer if isinstance(answer, bytes) else orjson.dumps(answer)
    return parse_chat(raw, ORIGIN)


def choice(index: int, finish_reason: str | None = "stop", logprobs: Any = None, **message: Any) -> dict[str, Any]:
    return {"index": index, "message": message, "finish_reason": finish_reason, "logprobs": logprobs}


def test_choices_come_in_the_order_of_their_index() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 0, "prompt_tokens_details": None}
    choices = [choice(2, "length", content="c"), choice(0, content="a"), choice(1, None, content="b")]
    assert parse({"choices": choices, "usage": usage}) == Response(
        text=["a", "b", "c"],
        finish_reason=["stop", None, "length"],
        usage=usage,
        reasoning_content=None,
        tool_calls=None,
        logprobs=None,
        latency_s=0.5,
        endpoint="http://e/v1",
        attempts=2,
    )


def test_no_index_is_the_order_as_it_came() -> None:
    choices = [{"message": {"content": text}} for text in "ab"]
    assert parse({"choices": choices}).text == ["a", "b"]


def test_only_tools_or_reasoning_leave_the_text_empty() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    answer = parse({"choices": [choice(0, "tool_calls", content=None, tool_calls=[call]), choice(1, content="x")]})
    assert answer.text == ["", "x"]
    assert answer.tool_calls == [[call], []]


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_reasoning_has_two_names(field: str) -> None:
    answer = parse({"choices": [choice(0, content="4", **{field: "2 + 2"}), choice(1, content="5")]})
    assert answer.reasoning_content == ["2 + 2", None]


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (None, {}),
        ([1], {}),
        ("12", {}),
        ({"prompt_tokens": "many", "completion_tokens": None, "total_tokens": True}, {"completion_tokens": None}),
        ({"prompt_tokens": 3, "more": "x", "prompt_tokens_details": [4]}, {"prompt_tokens": 3, "more": "x"}),
        ({"prompt_tokens_details": {"cached_tokens": "4"}}, {}),
        ({"prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 0}}, {"prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 0}}),
        ({"prompt_tokens_details": {}}, {"prompt_tokens_details": {}}),
        ({"prompt_tokens_details": None}, {"prompt_tokens_details": None}),
    ],
)  # fmt: skip
def test_counts_that_are_none_cost_no_answer(said: Any, kept: dict[str, Any]) -> None:
    answer = parse({"choices": [choice(0, content="a")], "usage": said})
    assert (answer.text, answer.usage) == (["a"], kept)


def test_logprobs_are_passed_on() -> None:
    logprobs = {"content": [{"token": "a", "logprob": -0.1}]}
    assert parse({"choices": [choice(0, logprobs=logprobs, content="a")]}).logprobs == [logprobs]


def test_logprobs_of_a_prompt_belong_to_all_its_answers() -> None:
    prompt_logprobs = [None, {"5": {"logprob": -0.1}}]
    choices = [choice(0, content="a"), choice(1, content="b")]
    assert parse({"choices": choices, "prompt_logprobs": prompt_logprobs}).prompt_logprobs == [prompt_logprobs]


def test_a_completion() -> None:
    prompt_logprobs = [None, {"5": {"logprob": -0.1}}]
    choices = [
        {
            "index": 1,
            "text": "b",
            "finish_reason": "length",
            "logprobs": {"tokens": ["b"]},
            "prompt_logprobs": prompt_logprobs,
        },
        {"index": 0, "text": "a", "finish_reason": "stop"},
    ]
    answer = parse_completion(orjson.dumps({"choices": choices, "usage": {"total_tokens": 3}}), ORIGIN)
    assert answer == Response(
        text=["a", "b"],
        finish_reason=["stop", "length"],
        usage={"total_tokens": 3},
        reasoning_content=None,
        tool_calls=None,
        logprobs=[None, {"tokens": ["b"]}],
        latency_s=0.5,
        endpoint="http://e/v1",
        attempts=2,
        prompt_logprobs=[None, prompt_logprobs],
    )


@pytest.mark.parametrize("vectors", [[[0.5, 0.25], [1.0, 0.0]], ["AAAA", "BBBB"]])
def test_embeddings(vectors: list[Any]) -> None:
    data = [{"index": 1, "embedding": vectors[1]}, {"index": 0, "embedding": vectors[0]}]
    answer = parse_embeddings(orjson.dumps({"data": data, "usage": {"prompt_tokens": 4}}), ORIGIN)
    assert answer.embeddings == vectors
    assert (answer.text, answer.usage) == ([], {"prompt_tokens": 4})


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b'{"data": []}', b'{"choices": [{"index": 0}]}', b'{"data": [1]}'])
def test_neither_is_anything_else(raw: bytes) -> None:
    for read in (parse_completion, parse_embeddings):
        with pytest.raises(ValueError, match=r"not a (list of embeddings|completion)|no embeddings"):
            read(raw, ORIGIN)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"<html>502</html>",
        b'{"choices": [{"index": 0, "mess',
        b"[]",
        b"null",
        b"{}",
        b'{"choices": []}',
        b'{"choices": [null]}',
        b'{"choices": [{"index": 0}]}',
        b'{"choices": [{"index": 0, "message": {"content": 5}}]}',
        b'{"choices": [{"index": 0, "message": {"content": "\xff"}}]}',
        b'{"choices": "text"}',
    ],
)
def test_what_is_no_answer_is_a_value_error(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"not a chat completion|no choices"):
        parse(raw)


def test_an_error_in_a_200_is_shown() -> None:
    with pytest.raises(ValueError, match="the model fell over"):
        parse({"error": {"message": "the model fell over"}})


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'{"error": {"message": "too long", "code": 400}}', "too long"),
        (b'{"error": "Unauthorized"}', "Unauthorized"),
        (b'{"object": "error", "message": "old shape"}', "old shape"),
        (b'{"detail": "Not Found"}', "Not Found"),
        (b'{"detail": [{"loc": ["body"], "msg": "missing"}]}', '[{"loc":["body"],"msg":"missing"}]'),
        (b'{"error": null}', '{"error": null}'),
        (b"upstream connect error", "upstream connect error"),
        (b"", "(empty body)"),
    ],
)
def test_error_message_knows_the_usual_shapes(raw: bytes, message: str) -> None:
    assert error_message(raw) == message
