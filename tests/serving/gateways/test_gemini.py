"""Gemini's gateway against a local server that speaks its REST API (https://ai.google.dev/api/generate-content)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from matrix.errors import AppError
from matrix.serving.backend import ApiError, Json
from matrix.serving.gateways.gemini import GeminiGateway
from matrix.spec.engine import GeminiEngine
from matrix.spec.model import ModelSpec
from tests.serving.gateways.wire import Answer, Vendor, collected, of_json, of_sse, serving, text_of

MODEL = ModelSpec(name="gemini-2.5-flash")
BODY: Json = {"model": "gemini-2.5-flash", "messages": [{"role": "user", "content": "1+1?"}], "max_tokens": 9}
USAGE = {"promptTokenCount": 4, "candidatesTokenCount": 2, "thoughtsTokenCount": 3, "totalTokenCount": 9}


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "the-key")


async def started(vendor: Vendor, **engine: Any) -> GeminiGateway:
    engine = {"kind": "gemini", "base_url": vendor.url, "max_attempts": 1, **engine}
    gateway = GeminiGateway(GeminiEngine.model_validate(engine), MODEL)
    await gateway.start()
    return gateway


@pytest.fixture
async def gateway(vendor: Vendor) -> AsyncIterator[GeminiGateway]:
    made = await started(vendor, thinking_budget=100)
    yield made
    await made.close()


def said(*parts: Json, finish: str | None = "STOP", **more: Any) -> Json:
    candidate = {"index": 0, "content": {"role": "model", "parts": list(parts)}, "finishReason": finish}
    return {"candidates": [candidate], "responseId": "r1", **more}


def failed(code: int, status: str, *details: Json) -> Json:
    return {"error": {"code": code, "message": "no", "status": status, "details": list(details)}}


async def test_an_answer(vendor: Vendor, gateway: GeminiGateway) -> None:
    vendor.script = [of_json(said({"text": "hm", "thought": True}, {"text": "2"}, usageMetadata=USAGE))]
    answer = await gateway.chat({**BODY, "messages": [{"role": "system", "content": "be"}, *BODY["messages"]]})
    assert answer["id"] == "r1"
    message = answer["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("2", "hm")
    assert answer["usage"]["completion_tokens"] == 5
    (asked,) = vendor.asked
    assert asked.path == "/v1/models/gemini-2.5-flash:generateContent"
    assert asked.headers["x-goog-api-key"] == "the-key"
    assert asked.json["contents"] == [{"role": "user", "parts": [{"text": "1+1?"}]}]
    assert asked.json["systemInstruction"]["parts"] == [{"text": "be"}]
    config = asked.json["generationConfig"]
    assert config["maxOutputTokens"] == 9
    assert config["thinkingConfig"] == {"include_thoughts": True, "thinking_budget": 100}


async def test_a_stream(vendor: Vendor, gateway: GeminiGateway) -> None:
    vendor.script = [
        of_sse(
            said({"text": "hm", "thought": True}, finish=None),
            said({"text": "t"}, finish=None),
            said({"text": "wo"}, usageMetadata=USAGE),
        )
    ]
    chunks = await collected(gateway.stream_chat({**BODY, "stream": True, "stream_options": {"include_usage": True}}))
    assert text_of(chunks) == "two"
    assert text_of(chunks, "reasoning_content") == "hm"
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["usage"]["completion_tokens_details"] == {"reasoning_tokens": 3}
    assert vendor.asked[0].path.endswith(":streamGenerateContent")
    assert vendor.asked[0].query == {"alt": "sse"}


async def test_an_error_within_a_stream(vendor: Vendor, gateway: GeminiGateway) -> None:
    vendor.script = [of_sse(said({"text": "t"}, finish=None), failed(503, "UNAVAILABLE"))]
    with pytest.raises(ApiError, match="UNAVAILABLE") as caught:
        await collected(gateway.stream_chat(BODY))
    assert caught.value.status == 503


async def test_a_tool_call_and_a_schema(vendor: Vendor, gateway: GeminiGateway) -> None:
    call = {"functionCall": {"name": "add", "args": {"a": 1}}, "thoughtSignature": "cw=="}
    vendor.script = [of_json(said(call)), of_json(said({"text": "{}"}))]
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {}}}}}
    answer = await gateway.chat({**BODY, "tools": [tool], "tool_choice": "required"})
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    message = answer["choices"][0]["message"]
    # Proto JSON takes a field by either of its names, and the SDK doesn't change those of what it passes on.
    declared = vendor.asked[0].json["tools"][0]["functionDeclarations"][0]
    assert declared["parameters_json_schema"] == tool["function"]["parameters"]
    assert vendor.asked[0].json["toolConfig"] == {"functionCallingConfig": {"mode": "ANY"}}
    schema = {"type": "object", "properties": {"sum": {"type": "integer"}}}
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "2"}
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    messages = [*BODY["messages"], message, result]
    await gateway.chat({**BODY, "messages": messages, "response_format": wanted})
    _, called, told = vendor.asked[1].json["contents"]
    assert called["parts"][0]["thoughtSignature"] == "cw=="
    assert told["parts"][0]["functionResponse"]["response"] == {"output": "2"}
    config = vendor.asked[1].json["generationConfig"]
    assert (config["responseMimeType"], config["responseJsonSchema"]) == ("application/json", schema)


RETRY = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.5s"}
INVALID = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}


@pytest.mark.parametrize(
    ("told", "status", "retry_after_s"),
    [
        (of_json(failed(429, "RESOURCE_EXHAUSTED", RETRY), 429), 429, 34.5),
        (of_json(failed(429, "RESOURCE_EXHAUSTED"), 429, Retry_After="7"), 429, 7),
        (of_json(failed(400, "INVALID_ARGUMENT", INVALID), 400), 401, None),
        (of_json(failed(400, "INVALID_ARGUMENT"), 400), 400, None),
        (of_json(failed(403, "PERMISSION_DENIED"), 403), 403, None),
        (of_json(failed(404, "NOT_FOUND"), 404), 404, None),
        (of_json(failed(500, "INTERNAL"), 500), 502, None),
        (of_json(failed(503, "UNAVAILABLE"), 503), 503, None),
        (of_json(failed(504, "DEADLINE_EXCEEDED"), 504), 504, None),
        (Answer([b"<html>"], 502, {"Content-Type": "text/html"}), 502, None),
        (Answer([b"no json"], 200), 502, None),
        (Answer([...]), 502, None),
        (of_json({"promptFeedback": {"blockReason": "SAFETY"}}), 400, None),
    ],
)
async def test_errors(
    vendor: Vendor, gateway: GeminiGateway, told: Answer, status: int, retry_after_s: float | None
) -> None:
    vendor.script = [told]
    with pytest.raises(ApiError) as caught:
        await gateway.chat(BODY)
    assert (caught.value.status, caught.value.retry_after_s) == (status, retry_after_s)
    assert "the-key" not in caught.value.message
    assert len(vendor.asked) == 1


async def test_it_is_tried_again(vendor: Vendor) -> None:
    gateway = await started(vendor, max_attempts=2)
    vendor.script = [of_json(failed(503, "UNAVAILABLE"), 503), of_json(said({"text": "2"}))]
    assert (await gateway.chat(BODY))["choices"][0]["message"]["content"] == "2"
    await gateway.close()


async def test_a_time_out(vendor: Vendor) -> None:
    gateway = await started(vendor, timeout_s=0.2)
    vendor.script = [Answer(delay_s=1)]
    with pytest.raises(ApiError) as caught:
        await gateway.chat(BODY)
    assert caught.value.status == 504
    await gateway.close()


@pytest.mark.parametrize("body", [{}, {"messages": [{"role": "user"}, {}]}, {**BODY, "temperature": "hot"}])
async def test_a_body_that_is_none_is_the_requests_fault(gateway: GeminiGateway, body: Json) -> None:
    with pytest.raises(ApiError) as caught:
        await gateway.chat(body)
    assert caught.value.status == 400


async def test_embeddings(vendor: Vendor, gateway: GeminiGateway) -> None:
    vendor.script = [of_json({"embeddings": [{"values": [1, 0.5]}, {"values": [0, 1]}]})]
    answer = await gateway.embed({"model": "m", "input": ["a", "b"], "dimensions": 2})
    assert [one["embedding"] for one in answer["data"]] == [[1, 0.5], [0, 1]]
    assert vendor.asked[0].path.endswith(":batchEmbedContents")
    texts = [one["content"]["parts"][0]["text"] for one in vendor.asked[0].json["requests"]]
    assert texts == ["a", "b"]


def test_no_key() -> None:
    engine = {"kind": "gemini", "api_key_env": "NO_SUCH_KEY"}
    with pytest.raises(AppError, match="NO_SUCH_KEY"):
        GeminiGateway(GeminiEngine.model_validate(engine), MODEL)
    with pytest.raises(AppError, match=r"engine\.project"):
        GeminiGateway(GeminiEngine.model_validate({**engine, "api_key_env": None}), MODEL)


def token(text: str) -> Answer:
    return of_json({"access_token": text, "expires_in": 3600, "token_type": "Bearer"})


async def test_vertex_with_a_token_that_is_taken_back(
    vendor: Vendor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service account whose tokens come from a local token server (https://google.aip.dev/auth/4112)."""
    private = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    async with serving() as tokens:
        account = {
            "type": "service_account",
            "project_id": "p",
            "private_key": private.decode(),
            "client_email": "a@p",
            "token_uri": f"{tokens.url}/token",
        }
        (tmp_path / "account.json").write_text(json.dumps(account))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "account.json"))
        tokens.script = [token("first"), token("second")]
        gateway = await started(vendor, project="p", location="us-central1", max_attempts=2)
        vendor.script = [of_json(failed(401, "UNAUTHENTICATED"), 401), of_json(said({"text": "2"}))]
        assert (await gateway.chat(BODY))["choices"][0]["message"]["content"] == "2"
        await gateway.close()
    assert [asked.headers["authorization"] for asked in vendor.asked] == ["Bearer first", "Bearer second"]
    path = "/v1beta1/projects/p/locations/us-central1/publishers/google/models/gemini-2.5-flash:generateContent"
    assert vendor.asked[0].path == path
