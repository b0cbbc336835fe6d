"""OpenAI's chat format into Converse's and back; what goes out has to pass botocore's own validation."""

from __future__ import annotations

import base64
import json

import botocore.session
import pytest
from botocore.validate import ParamValidator

from matrix.serving.backend import ApiError, Json
from matrix.serving.gateways import bedrock_format
from matrix.serving.gateways.bedrock_format import ConverseStream

CLAUDE = "us.anthropic.claude-sonnet-4-5"
USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}


@pytest.fixture(scope="module")
def shape() -> object:
    model = botocore.session.get_session().get_service_model("bedrock-runtime")
    return model.operation_model("Converse").input_shape


def asked(body: Json, shape: object, model: str = CLAUDE, budget: int | None = None) -> Json:
    arguments = bedrock_format.request({"messages": [USER], **body}, model, budget)
    assert not ParamValidator().validate(arguments, shape).generate_report()
    return arguments


def test_sampling_fields(shape: object) -> None:
    body = {"max_tokens": 5, "temperature": 0, "top_p": 0.5, "stop": ["x"], "top_k": 3, "seed": 1, "n": 1}
    assert asked(body, shape) == {
        "modelId": CLAUDE,
        "messages": [{"role": "user", "content": [{"text": "hi"}]}],
        "inferenceConfig": {"maxTokens": 5, "temperature": 0, "topP": 0.5, "stopSequences": ["x"]},
        "additionalModelRequestFields": {"top_k": 3},
    }


def test_what_has_no_counterpart_is_refused_by_name() -> None:
    with pytest.raises(ApiError, match="logprobs, presence_penalty") as caught:
        bedrock_format.request({"messages": [USER], "logprobs": True, "presence_penalty": 1}, CLAUDE, None)
    assert caught.value.status == 400


def test_turns_alternate(shape: object) -> None:
    data = base64.b64encode(b"jpg").decode()
    thoughts = [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "redacted_thinking", "data": base64.b64encode(b"r").decode()},
    ]
    arguments = asked(
        {
            "messages": [
                {"role": "system", "content": "be"},
                USER,
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}},
                        {"type": "image_url", "image_url": {"url": "s3://bucket/a.jpg"}},
                    ],
                },
                {"role": "assistant", "content": "ok", "tool_calls": [CALL], "thinking_blocks": thoughts},
                {"role": "tool", "tool_call_id": "c1", "content": "2"},
                {"role": "user", "content": "go on"},
            ],
            "tools": [TOOL],
            "tool_choice": "required",
        },
        shape,
    )
    assert arguments["system"] == [{"text": "be"}]
    first, second, third = arguments["messages"]
    assert first["content"] == [
        {"text": "hi"},
        {"image": {"format": "jpeg", "source": {"bytes": b"jpg"}}},
        {"image": {"format": "jpeg", "source": {"s3Location": {"uri": "s3://bucket/a.jpg"}}}},
    ]
    assert second == {
        "role": "assistant",
        "content": [
            {"reasoningContent": {"reasoningText": {"text": "hm", "signature": "s"}}},
            {"reasoningContent": {"redactedContent": b"r"}},
            {"text": "ok"},
            {"toolUse": {"toolUseId": "c1", "name": "add", "input": {"a": 1}}},
        ],
    }
    assert third["content"] == [{"toolResult": {"toolUseId": "c1", "content": [{"text": "2"}]}}, {"text": "go on"}]
    assert arguments["toolConfig"]["toolChoice"] == {"any": {}}


def test_tool_choice(shape: object) -> None:
    named = {"type": "function", "function": {"name": "add"}}
    assert asked({"tools": [TOOL], "tool_choice": named}, shape)["toolConfig"]["toolChoice"] == {
        "tool": {"name": "add"}
    }
    assert "toolConfig" not in asked({"tools": [TOOL], "tool_choice": "none"}, shape)
    history = [
        USER,
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
    ]
    with pytest.raises(ApiError, match="can't forbid tools"):
        asked({"messages": history, "tools": [TOOL], "tool_choice": "none"}, shape)


def test_images_by_address_are_refused() -> None:
    part = {"type": "image_url", "image_url": {"url": "https://a/b.png"}}
    with pytest.raises(ApiError, match="data URL"):
        bedrock_format.request({"messages": [{"role": "user", "content": [part]}]}, CLAUDE, None)


def test_json_schema(shape: object) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    body = {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}}
    text = asked(body, shape)["outputConfig"]["textFormat"]
    assert text["type"] == "json_schema"
    assert text["structure"]["jsonSchema"]["name"] == "n"
    assert json.loads(text["structure"]["jsonSchema"]["schema"]) == schema
    with pytest.raises(ApiError, match="json_object"):
        asked({"response_format": {"type": "json_object"}}, shape)


@pytest.mark.parametrize(
    ("body", "model", "budget", "fields"),
    [
        ({}, CLAUDE, 2000, {"thinking": {"type": "enabled", "budget_tokens": 2000}}),
        ({"thinking_budget": 3000}, CLAUDE, 2000, {"thinking": {"type": "enabled", "budget_tokens": 3000}}),
        ({"thinking_budget": 0}, CLAUDE, 2000, None),
        (
            {"reasoning_effort": "low"},
            CLAUDE,
            2000,
            {"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}},
        ),
        ({"reasoning_effort": "none"}, CLAUDE, 2000, None),
        (
            {"reasoning_effort": "low", "top_k": 4},
            "us.amazon.nova-2-lite-v1:0",
            None,
            {
                "inferenceConfig": {"topK": 4},
                "reasoningConfig": {"type": "enabled", "maxReasoningEffort": "low"},
            },
        ),
        ({"reasoning_effort": "low"}, "openai.gpt-oss-20b-1:0", None, {"reasoning_effort": "low"}),
        ({"top_k": 4, "additionalModelRequestFields": {"k": 4}}, CLAUDE, None, {"top_k": 4, "k": 4}),
    ],
)
def test_fields_of_the_model(body: Json, model: str, budget: int | None, fields: Json | None, shape: object) -> None:
    assert asked(body, shape, model, budget).get("additionalModelRequestFields") == fields


def test_a_whole_answer() -> None:
    answer = bedrock_format.answer(
        {
            "output": {
                "message": {
                    "role": "assistant",
                    "content": [
                        {"reasoningContent": {"reasoningText": {"text": "hm", "signature": "s"}}},
                        {"reasoningContent": {"redactedContent": b"r"}},
                        {"text": "2"},
                        {"toolUse": {"toolUseId": "c1", "name": "add", "input": {"a": 1}}},
                    ],
                }
            },
            "stopReason": "tool_use",
            "usage": {"inputTokens": 5, "outputTokens": 3, "totalTokens": 12, "cacheReadInputTokens": 4},
        },
        "m",
    )
    (choice,) = answer["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": "2",
        "reasoning_content": "hm",
        "tool_calls": [{**CALL}],
        "thinking_blocks": [
            {"type": "thinking", "thinking": "hm", "signature": "s"},
            {"type": "redacted_thinking", "data": "cg=="},
        ],
    }
    assert choice["finish_reason"] == "tool_calls"
    assert answer["usage"] == {
        "prompt_tokens": 9,
        "completion_tokens": 3,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 4},
    }


def test_an_answer_that_is_none() -> None:
    with pytest.raises(ApiError, match="malformed_tool_use") as caught:
        bedrock_format.answer(
            {
                "output": {"message": {"role": "assistant", "content": []}},
                "stopReason": "malformed_tool_use",
                "usage": {"inputTokens": 1, "outputTokens": 1, "totalTokens": 2},
            },
            "m",
        )
    assert caught.value.status == 502


def test_a_stream() -> None:
    stream = ConverseStream("m")
    events: list[Json] = [
        {"messageStart": {"role": "assistant"}},
        {"contentBlockDelta": {"contentBlockIndex": 0, "delta": {"reasoningContent": {"text": "h"}}}},
        {"contentBlockDelta": {"contentBlockIndex": 0, "delta": {"reasoningContent": {"text": "m"}}}},
        {"contentBlockDelta": {"contentBlockIndex": 0, "delta": {"reasoningContent": {"signature": "s"}}}},
        {"contentBlockStop": {"contentBlockIndex": 0}},
        {"contentBlockDelta": {"contentBlockIndex": 1, "delta": {"text": "2"}}},
        {"contentBlockStop": {"contentBlockIndex": 1}},
        {"contentBlockStart": {"contentBlockIndex": 2, "start": {"toolUse": {"toolUseId": "a", "name": "f"}}}},
        {"contentBlockDelta": {"contentBlockIndex": 2, "delta": {"toolUse": {"input": '{"x":'}}}},
        {"contentBlockDelta": {"contentBlockIndex": 2, "delta": {"toolUse": {"input": "1}"}}}},
        {"contentBlockStop": {"contentBlockIndex": 2}},
        {"contentBlockStart": {"contentBlockIndex": 3, "start": {"toolUse": {"toolUseId": "b", "name": "g"}}}},
        {"contentBlockStop": {"contentBlockIndex": 3}},
        {"messageStop": {"stopReason": "tool_use"}},
        {"metadata": {"usage": {"inputTokens": 1, "outputTokens": 2, "totalTokens": 3}}},
    ]
    chunks = [chunk for event in events for chunk in stream.feed(event)] + stream.end()
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "hm"
    assert [d["thinking_blocks"] for d in deltas if "thinking_blocks" in d] == [
        [{"type": "thinking", "thinking": "hm", "signature": "s"}]
    ]
    calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    arguments = {i: "".join(c["function"]["arguments"] for c in calls if c["index"] == i) for i in (0, 1)}
    assert arguments == {0: '{"x":1}', 1: "{}"}
    assert chunks[-2]["choices"][0]["finish_reason"] == "tool_calls"
    assert chunks[-1]["usage"] == {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}


def test_a_stream_that_breaks_off_is_no_answer() -> None:
    stream = ConverseStream("m")
    stream.feed({"messageStart": {"role": "assistant"}})
    with pytest.raises(ApiError, match="broke off"):
        stream.end()
