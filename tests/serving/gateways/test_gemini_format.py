"""OpenAI's chat format into Gemini's and back; what goes out has to pass the SDK's own types."""

from __future__ import annotations

import base64
import json

import pytest
from google.genai import types

from matrix.serving.backend import ApiError, Json
from matrix.serving.gateways import gemini_format
from matrix.serving.gateways.gemini_format import GeminiStream

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "add", "description": "adds", "parameters": {"type": "object"}}}


def asked(body: Json, model: str = "gemini-2.5-flash", budget: int | None = None) -> tuple[list[Json], Json]:
    contents, config = gemini_format.request({"messages": [USER], **body}, model, budget)
    types.GenerateContentConfig(**config)
    for content in contents:
        types.Content(**content)
    return contents, config


def response(candidates: list[Json], **more: object) -> types.GenerateContentResponse:
    return types.GenerateContentResponse.model_validate({"candidates": candidates, **more})


def said(*parts: Json, finish: str | None = "STOP", index: int = 0, **more: object) -> Json:
    return {"index": index, "content": {"role": "model", "parts": list(parts)}, "finishReason": finish, **more}


def test_sampling_fields() -> None:
    _, config = asked(
        {
            "max_tokens": 7,
            "temperature": 0,
            "top_p": 0.5,
            "top_k": 3,
            "seed": 2**40 + 5,
            "stop": "x",
            "n": 2,
            "logprobs": True,
            "top_logprobs": 4,
            "presence_penalty": 0.5,
        }
    )
    assert config == {
        "max_output_tokens": 7,
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 3,
        "seed": 5,
        "stop_sequences": ["x"],
        "candidate_count": 2,
        "response_logprobs": True,
        "logprobs": 4,
        "presence_penalty": 0.5,
    }


def test_what_says_nothing_is_not_sent() -> None:
    body = {"top_k": -1, "n": 1, "logit_bias": {}, "repetition_penalty": 1.0, "stop": None, "logprobs": False}
    assert asked(body)[1] == {}


def test_what_has_no_counterpart_is_refused_by_name() -> None:
    with pytest.raises(ApiError, match="logit_bias, min_p") as caught:
        asked({"min_p": 0.1, "logit_bias": {"1": 5}})
    assert caught.value.status == 400


def test_messages_images_and_tools() -> None:
    data = base64.b64encode(b"png").decode()
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    signed = {**call, "id": "c2", "extra_content": {"google": {"thought_signature": base64.b64encode(b"s").decode()}}}
    contents, config = asked(
        {
            "messages": [
                {"role": "system", "content": "be"},
                {"role": "developer", "content": [{"type": "text", "text": "brief"}]},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "look"},
                        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
                        {"type": "image_url", "image_url": {"url": "gs://bucket/a.jpg"}},
                    ],
                },
                {"role": "assistant", "content": None, "tool_calls": [call, signed]},
                {"role": "tool", "tool_call_id": "c1", "content": '{"sum": 2}'},
                {"role": "tool", "tool_call_id": "c2", "content": "two"},
            ],
            "tools": [TOOL],
            "tool_choice": {"type": "function", "function": {"name": "add"}},
        }
    )
    assert config["system_instruction"] == "be\n\nbrief"
    assert contents[0]["parts"] == [
        {"text": "look"},
        {"inline_data": {"mime_type": "image/png", "data": b"png"}},
        {"file_data": {"file_uri": "gs://bucket/a.jpg", "mime_type": "image/jpeg"}},
    ]
    assert contents[1] == {
        "role": "model",
        "parts": [
            {"function_call": {"id": "c1", "name": "add", "args": {"a": 1}}},
            {"function_call": {"id": "c2", "name": "add", "args": {"a": 1}}, "thought_signature": b"s"},
        ],
    }
    assert [part["function_response"]["response"] for part in contents[2]["parts"]] == [{"sum": 2}, {"output": "two"}]
    assert config["tools"][0]["function_declarations"][0]["parameters_json_schema"] == {"type": "object"}
    assert config["tool_config"]["function_calling_config"] == {"mode": "ANY", "allowed_function_names": ["add"]}


@pytest.mark.parametrize(("choice", "mode"), [("none", "NONE"), ("auto", "AUTO"), ("required", "ANY")])
def test_tool_choice(choice: str, mode: str) -> None:
    _, config = asked({"tools": [TOOL], "tool_choice": choice})
    assert config["tool_config"]["function_calling_config"]["mode"] == mode


def test_a_result_of_a_call_that_nobody_made_is_refused() -> None:
    with pytest.raises(ApiError, match="'c9'"):
        asked({"messages": [{"role": "tool", "tool_call_id": "c9", "content": "x"}]})


def test_json_schema() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    config = asked({"response_format": wanted})[1]
    assert config == {"response_mime_type": "application/json", "response_json_schema": schema}
    config = asked({"response_format": {"type": "json_object"}})[1]
    assert config == {"response_mime_type": "application/json"}


@pytest.mark.parametrize(
    ("body", "model", "budget", "thinking"),
    [
        ({}, "gemini-2.5-pro", None, None),
        ({}, "gemini-2.5-pro", 100, {"thinking_budget": 100, "include_thoughts": True}),
        ({}, "gemini-2.5-pro", 0, {"thinking_budget": 0, "include_thoughts": False}),
        ({"thinking_budget": 7}, "gemini-2.5-pro", 100, {"thinking_budget": 7, "include_thoughts": True}),
        ({"reasoning_effort": "low"}, "gemini-2.5-pro", 100, {"thinking_budget": 1024, "include_thoughts": True}),
        ({"reasoning_effort": "low"}, "gemini-3-pro", None, {"thinking_level": "LOW", "include_thoughts": True}),
        ({"reasoning_effort": "none"}, "gemini-2.5-flash", None, {"thinking_budget": 0, "include_thoughts": False}),
    ],
)
def test_thinking(body: Json, model: str, budget: int | None, thinking: Json | None) -> None:
    assert asked(body, model, budget)[1].get("thinking_config") == thinking


def test_a_whole_answer() -> None:
    answer = gemini_format.answer(
        response(
            [
                said(
                    {"text": "hm", "thought": True},
                    {"text": "2"},
                    logprobsResult={
                        "chosenCandidates": [{"token": "2", "logProbability": -0.5}],
                        "topCandidates": [{"candidates": [{"token": "2", "logProbability": -0.5}]}],
                    },
                ),
                said({"functionCall": {"name": "add", "args": {"a": 1}}, "thoughtSignature": "cw=="}, index=1),
                said({"text": "x"}, index=2, finish="MAX_TOKENS"),
                said(index=3, finish="SAFETY"),
            ],
            usageMetadata={
                "promptTokenCount": 5,
                "candidatesTokenCount": 3,
                "thoughtsTokenCount": 4,
                "cachedContentTokenCount": 2,
                "totalTokenCount": 12,
            },
        ),
        "m",
    )
    first, second, third, fourth = answer["choices"]
    assert first["message"] == {
        "role": "assistant",
        "content": "2",
        "reasoning_content": "hm",
    }
    token = {"token": "2", "logprob": -0.5, "bytes": [50]}
    assert first["logprobs"] == {"content": [{**token, "top_logprobs": [token]}], "refusal": None}
    assert second["finish_reason"] == "tool_calls"
    (call,) = second["message"]["tool_calls"]
    assert call["id"]
    assert call["function"] == {"name": "add", "arguments": '{"a": 1}'}
    assert call["extra_content"] == {"google": {"thought_signature": "cw=="}}
    assert [c["finish_reason"] for c in (first, third, fourth)] == ["stop", "length", "content_filter"]
    assert answer["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 7,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 2},
        "completion_tokens_details": {"reasoning_tokens": 4},
    }


def test_a_blocked_prompt_is_the_requests_own_fault() -> None:
    blocked = types.GenerateContentResponse.model_validate(
        {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT", "blockReasonMessage": "no"}}
    )
    with pytest.raises(ApiError, match="PROHIBITED_CONTENT: no") as caught:
        gemini_format.answer(blocked, "m")
    assert caught.value.status == 400


@pytest.mark.parametrize("candidates", [[], [said(finish="MALFORMED_FUNCTION_CALL")]])
def test_no_answer_is_a_failure_of_the_vendor(candidates: list[Json]) -> None:
    with pytest.raises(ApiError) as caught:
        gemini_format.answer(response(candidates), "m")
    assert caught.value.status == 502


def test_a_stream() -> None:
    stream = GeminiStream("m")
    chunks = [
        *stream.feed(response([said({"text": "hm", "thought": True}, finish=None)])),
        *stream.feed(response([said({"text": "2"}, finish=None)])),
        *stream.feed(response([said({"functionCall": {"id": "a", "name": "f", "args": {}}}, finish=None)])),
        *stream.feed(
            response(
                [said({"functionCall": {"id": "b", "name": "g", "args": {"x": 1}}})],
                usageMetadata={"promptTokenCount": 1, "candidatesTokenCount": 2},
            )
        ),
        *stream.end(),
    ]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    assert deltas[0] == {"role": "assistant", "content": "", "reasoning_content": "hm"}
    assert deltas[1] == {"content": "2"}
    calls = [delta["tool_calls"][0] for delta in deltas[2:]]
    assert [(call["index"], call["id"]) for call in calls] == [(0, "a"), (1, "b")]
    assert json.loads(calls[1]["function"]["arguments"]) == {"x": 1}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None, None, None, "tool_calls"]
    assert chunks[-1]["usage"]["total_tokens"] == 3
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_a_stream_that_breaks_off_is_no_answer() -> None:
    stream = GeminiStream("m")
    stream.feed(response([said({"text": "2"}, finish=None)]))
    with pytest.raises(ApiError, match="broke off"):
        stream.end()
