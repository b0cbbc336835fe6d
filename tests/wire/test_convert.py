"""Requests and answers through the messages of openai.proto and back: nothing is lost, nothing is added."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matrix.wire import openai_pb2 as pb
from matrix.wire.convert import to_json, to_message

KINDS = (pb.ChatRequest, pb.ChatResponse, pb.ChatChunk, pb.CompletionRequest, pb.CompletionResponse)
KINDS += (pb.EmbeddingRequest, pb.EmbeddingResponse, pb.ModelsResponse, pb.ExecuteRequest, pb.ExecuteResponse)

CHAT: dict[str, Any] = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "s"},
        {
            "role": "user",
            "name": "u",
            "content": [
                {"type": "text", "text": "what is it?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}},
                {"type": "video_url", "video_url": {"url": "http://a/v.mp4"}},
            ],
        },
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "hm",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": ""},
    ],
    "temperature": 0,
    "top_p": 0.0,
    "top_k": -1,
    "min_p": 0.1,
    "max_tokens": 5,
    "max_completion_tokens": 0,
    "n": 1,
    "stop": ["a", "b"],
    "presence_penalty": -2,
    "frequency_penalty": 0,
    "repetition_penalty": 1.1,
    "logit_bias": {"50256": -100, "7": 0.5},
    "seed": 0,
    "logprobs": False,
    "top_logprobs": 0,
    "prompt_logprobs": 0,
    "user": "",
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "f",
                "description": "d",
                "strict": False,
                "parameters": {"type": "object", "properties": {"z": {"type": "integer"}, "a": {}}},
            },
        }
    ],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
    "structured_outputs": {"json": {"type": "object"}, "disable_any_whitespace": True},
    "guided_json": {"type": "string"},
    "guided_regex": "a+",
    "guided_choice": ["a"],
    "guided_grammar": "g",
    "stream": True,
    "stream_options": {"include_usage": True},
    "chat_template_kwargs": {"enable_thinking": False},
    "extra": {"mine": [1, 2.5, None, 2**60]},
    "vllm_xargs": {"a": 2**53 + 1},
}

ANSWER: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1_790_000_000,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant", "content": "Hé", "refusal": None, "annotations": None, "tool_calls": [],
                "reasoning": None,
            },
            "logprobs": {
                "content": [
                    {
                        "token": "H",
                        "logprob": -0.1,
                        "bytes": [72],
                        "top_logprobs": [
                            {"token": "H", "logprob": -0.1, "bytes": [72]},
                            {"token": "", "logprob": -9999.0, "bytes": []},
                        ],
                    },
                    {"token": "é", "logprob": -1e-300, "bytes": None, "top_logprobs": []},
                ]
            },
            "finish_reason": "stop",
            "stop_reason": 128009,
            "token_ids": [1, 2],
        }
    ],
    "usage": {
        "prompt_tokens": 0,
        "completion_tokens": 2,
        "total_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 3},
        "cost": 0.01,
    },
    "prompt_logprobs": [None, {"7": {"logprob": -1.0, "rank": 1, "decoded_token": "a"}}],
    "kv_transfer_params": None,
}  # fmt: skip

COMPLETIONS: list[dict[str, Any]] = [
    {"model": "m", "prompt": "a", "logprobs": 0, "echo": False},
    {"model": "m", "prompt": ["a", "b"], "stop": "x"},
    {"model": "m", "prompt": [1, 2, 3]},
    {"model": "m", "prompt": [[1, 2], [3]]},
    {"model": "m", "prompt": []},
    {"model": "m", "prompt": None},
]


def there_and_back(kind: Any, given: dict[str, Any]) -> dict[str, Any]:
    return to_json(kind.FromString(to_message(kind, given).SerializeToString()))


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (pb.ChatRequest, CHAT),
        (pb.ChatResponse, ANSWER),
        *((pb.CompletionRequest, body) for body in COMPLETIONS),
        (pb.EmbeddingRequest, {"model": "m", "input": ["a"], "encoding_format": "float"}),
        (pb.EmbeddingResponse, {"data": [{"index": 0, "embedding": [0.1, -2, 1e-9]}, {"embedding": "AAAA"}]}),
    ],
)
def test_nothing_is_lost(kind: Any, given: dict[str, Any]) -> None:
    assert there_and_back(kind, given) == given


def test_what_has_a_field_is_in_it() -> None:
    message = to_message(pb.ChatRequest, CHAT)
    assert sorted(message.extra) == ["extra", "vllm_xargs"]
    assert message.HasField("temperature")
    assert message.HasField("seed")
    assert message.HasField("logprobs")
    assert not message.HasField("priority")
    assert message.messages[1].content_parts[1].image_url.detail == "low"
    assert message.structured_outputs.json_json == '{"type":"object"}'
    assert message.logit_bias["50256"] == -100
    answer = to_message(pb.ChatResponse, ANSWER)
    assert answer.choices[0].logprobs.content[0].top_logprobs[0].bytes == b"H"
    assert answer.usage.completion_tokens_details.reasoning_tokens == 3
    assert dict(answer.choices[0].extra) == {"stop_reason": "128009"}
    prompts = [to_message(pb.CompletionRequest, body) for body in COMPLETIONS[:3]]
    assert (prompts[0].prompt, list(prompts[1].prompts), list(prompts[2].prompt_tokens)) == ("a", ["a", "b"], [1, 2, 3])


def test_the_order_of_a_schema_s_keys_is_kept() -> None:
    parameters = there_and_back(pb.ChatRequest, CHAT)["tools"][0]["function"]["parameters"]
    assert list(parameters["properties"]) == ["z", "a"]


def test_extra_wins() -> None:
    assert to_json(pb.ChatRequest(temperature=1, extra={"temperature": "0.5"})) == {"temperature": 0.5}


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"a": object()}, TypeError),
        ({1: 2}, TypeError),
        ({"model": "\ud800"}, ValueError),
        ({"a": "\ud800"}, TypeError),
    ],
)
def test_what_is_no_json(given: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        to_message(pb.ChatRequest, given)


def test_an_extra_that_is_no_json() -> None:
    with pytest.raises(ValueError, match="unexpected"):
        to_json(pb.ChatRequest(extra={"a": "{"}))


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.integers(-2, 300)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def objects(descriptor: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with the names of a message's fields, at every depth, and values that fit, or anything at all."""
    names = {field.name.removesuffix("_json"): value(field) | ANYTHING for field in descriptor.fields}
    names |= dict.fromkeys(("content", "prompt", "input", "tool_choice", "embedding"), ANYTHING)
    known = st.lists(st.sampled_from(sorted(names)), max_size=6, unique=True).flatmap(
        lambda some: st.fixed_dictionaries({name: names[name] for name in some})
    )
    return st.builds(
        lambda some, more: {**more, **some}, known, st.dictionaries(st.text(max_size=3), ANYTHING, max_size=1)
    )


def value(field: Any) -> st.SearchStrategy[Any]:
    if field.name == "extra" or field.name.endswith("_json"):
        return ANYTHING
    if field.message_type and field.message_type.GetOptions().map_entry:
        return st.dictionaries(st.text(max_size=3), st.floats(allow_nan=False) | st.integers(-9, 9), max_size=2)
    if field.message_type:
        one: st.SearchStrategy[Any] = st.deferred(lambda: objects(field.message_type))
    else:
        one = {
            field.TYPE_STRING: st.text(max_size=5),
            field.TYPE_DOUBLE: st.floats(allow_nan=False) | st.integers(-9, 9),
            field.TYPE_INT64: st.integers(-(2**63), 2**64 - 1),
            field.TYPE_BOOL: st.booleans(),
            field.TYPE_BYTES: st.lists(st.integers(-1, 256), max_size=3),
        }[field.type]
    return st.lists(one, max_size=3) if field.is_repeated else one


def exactly(given: Any) -> Any:
    """The same with the type of each value beside it, so that true isn't 1; a whole number is one, however written."""
    if isinstance(given, dict):
        return {name: exactly(one) for name, one in given.items()}
    if isinstance(given, list):
        return [exactly(one) for one in given]
    return ("number" if type(given) in {int, float} else type(given), given)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.DESCRIPTOR.name)
@given(data=st.data())
@settings(max_examples=60)
def test_any_object_comes_back(kind: Any, data: st.DataObject) -> None:
    given = data.draw(objects(kind.DESCRIPTOR))
    assert exactly(there_and_back(kind, given)) == exactly(given)
