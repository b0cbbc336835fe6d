"""Bedrock's gateway against a local server that speaks Converse's JSON and AWS's event stream."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from matrix.errors import AppError
from matrix.serving.backend import ApiError, Json
from matrix.serving.gateways.bedrock import BedrockGateway
from matrix.spec.engine import BedrockEngine
from matrix.spec.model import ModelSpec
from tests.serving.gateways.wire import Answer, Vendor, collected, event, of_events, of_json, text_of

MODEL = ModelSpec(name="us.anthropic.claude-sonnet-4-5-20250929-v1:0")
BODY: Json = {"model": MODEL.name, "messages": [{"role": "user", "content": "1+1?"}], "max_tokens": 9}
USAGE = {"inputTokens": 4, "outputTokens": 2, "totalTokens": 6}


pytestmark = pytest.mark.usefixtures("aws_credentials")


async def started(vendor: Vendor, **engine: Any) -> BedrockGateway:
    engine = {"kind": "bedrock", "region": "us-east-1", "base_url": vendor.url, "max_attempts": 1, **engine}
    gateway = BedrockGateway(BedrockEngine.model_validate(engine), MODEL)
    await gateway.start()
    return gateway


@pytest.fixture
async def gateway(vendor: Vendor) -> AsyncIterator[BedrockGateway]:
    made = await started(vendor)
    yield made
    await made.close()


def said(*content: Json, stop: str = "end_turn") -> Answer:
    message = {"role": "assistant", "content": list(content)}
    return of_json({"output": {"message": message}, "stopReason": stop, "usage": USAGE, "metrics": {"latencyMs": 1}})


def failed(code: str, status: int, **headers: str) -> Answer:
    return of_json({"message": "no"}, status, **{"x-amzn-errortype": f"{code}:http://internal.amazon.com/", **headers})


def told(kind: str, **payload: Any) -> bytes:
    return event(kind, json.dumps(payload).encode())


async def test_an_answer(vendor: Vendor) -> None:
    gateway = await started(vendor, thinking_budget=2000)
    thoughts = {"reasoningContent": {"reasoningText": {"text": "hm", "signature": "s"}}}
    vendor.script = [said(thoughts, {"text": "2"})]
    answer = await gateway.chat(BODY)
    message = answer["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("2", "hm")
    assert answer["usage"]["total_tokens"] == 6
    (asked,) = vendor.asked
    assert asked.path == "/model/us.anthropic.claude-sonnet-4-5-20250929-v1%3A0/converse"
    assert "Credential=FIRST/" in asked.headers["authorization"]
    assert asked.json["inferenceConfig"] == {"maxTokens": 9}
    assert asked.json["additionalModelRequestFields"]["thinking"]["budget_tokens"] == 2000
    await gateway.close()


async def test_several_answers_are_several_calls(vendor: Vendor, gateway: BedrockGateway) -> None:
    vendor.script = [said({"text": "2"}), said({"text": "two"})]
    answer = await gateway.chat({**BODY, "n": 2})
    assert sorted(one["message"]["content"] for one in answer["choices"]) == ["2", "two"]
    assert answer["usage"]["total_tokens"] == 12


async def test_a_stream(vendor: Vendor, gateway: BedrockGateway) -> None:
    events = b"".join(
        [
            told("messageStart", role="assistant"),
            told("contentBlockDelta", contentBlockIndex=0, delta={"reasoningContent": {"text": "hm"}}),
            told("contentBlockDelta", contentBlockIndex=1, delta={"text": "t"}),
            told("contentBlockDelta", contentBlockIndex=1, delta={"text": "wo"}),
            told("messageStop", stopReason="end_turn"),
            told("metadata", usage=USAGE, metrics={"latencyMs": 1}),
        ]
    )
    # Cut in the middle of messages.
    vendor.script = [of_events(events[:70], events[70:200], events[200:])]
    chunks = await collected(gateway.stream_chat({**BODY, "stream_options": {"include_usage": True}}))
    assert text_of(chunks) == "two"
    assert text_of(chunks, "reasoning_content") == "hm"
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["usage"]["total_tokens"] == 6
    assert vendor.asked[0].path.endswith("/converse-stream")


@pytest.mark.parametrize(
    ("last", "status"),
    [
        (event("throttlingException", b'{"message": "slow"}', "exception"), 429),
        (event("modelStreamErrorException", b'{"message": "broken"}', "exception"), 502),
        (..., 502),
        (b"", 502),
    ],
)
async def test_a_stream_that_fails(vendor: Vendor, gateway: BedrockGateway, last: Any, status: int) -> None:
    begun = told("contentBlockDelta", contentBlockIndex=0, delta={"text": "t"})
    vendor.script = [of_events(told("messageStart", role="assistant"), begun, last)]
    stream = gateway.stream_chat(BODY)
    assert text_of([await anext(stream), await anext(stream)]) == "t"
    with pytest.raises(ApiError) as caught:
        await anext(stream)
    assert caught.value.status == status


async def test_a_stream_that_nobody_reads_to_its_end(vendor: Vendor, gateway: BedrockGateway) -> None:
    begun = told("contentBlockDelta", contentBlockIndex=0, delta={"text": "t"})
    vendor.script = [of_events(told("messageStart", role="assistant"), begun, begun), said({"text": "2"})]
    chunks = gateway.stream_chat(BODY)
    await anext(chunks)
    await chunks.aclose()  # type: ignore[attr-defined]
    assert (await gateway.chat(BODY))["choices"][0]["message"]["content"] == "2"


async def test_a_tool_call_and_a_schema(vendor: Vendor, gateway: BedrockGateway) -> None:
    use = {"toolUse": {"toolUseId": "c1", "name": "add", "input": {"a": 1}}}
    vendor.script = [said(use, stop="tool_use"), said({"text": "{}"})]
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    answer = await gateway.chat({**BODY, "tools": [tool]})
    message = answer["choices"][0]["message"]
    assert message["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": 1}'}
    schema = {"type": "object", "properties": {"sum": {"type": "integer"}}}
    result = {"role": "tool", "tool_call_id": "c1", "content": "2"}
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    messages = [*BODY["messages"], message, result]
    await gateway.chat({**BODY, "messages": messages, "tools": [tool], "response_format": wanted})
    assert vendor.asked[1].json["messages"][1]["content"] == [use]
    form = vendor.asked[1].json["outputConfig"]["textFormat"]["structure"]["jsonSchema"]
    assert json.loads(form["schema"]) == schema


@pytest.mark.parametrize(
    ("answer", "status", "retry_after_s"),
    [
        (failed("ThrottlingException", 429), 429, None),
        (failed("ThrottlingException", 429, retry_after="3"), 429, 3),
        (failed("ServiceQuotaExceededException", 400), 429, None),
        (failed("AccessDeniedException", 403), 403, None),
        (failed("UnrecognizedClientException", 403), 401, None),
        (failed("ValidationException", 400), 400, None),
        (failed("ResourceNotFoundException", 404), 404, None),
        (failed("ModelTimeoutException", 408), 504, None),
        (failed("ModelNotReadyException", 429), 503, None),
        (failed("ModelErrorException", 424), 502, None),
        (failed("InternalServerException", 500), 502, None),
        (failed("ServiceUnavailableException", 503), 503, None),
        (Answer([b"<html>"], 502), 502, None),
        (Answer([...]), 502, None),
    ],
)
async def test_errors(
    vendor: Vendor, gateway: BedrockGateway, answer: Answer, status: int, retry_after_s: float | None
) -> None:
    vendor.script = [answer, answer]
    with pytest.raises(ApiError) as caught:
        await gateway.chat(BODY)
    assert (caught.value.status, caught.value.retry_after_s) == (status, retry_after_s)
    # Nothing but credentials that may be old is tried again below the gateway.
    assert len(vendor.asked) == (2 if status == 401 else 1)


async def test_a_time_out(vendor: Vendor) -> None:
    gateway = await started(vendor, timeout_s=0.2)
    vendor.script = [Answer(delay_s=1)]
    with pytest.raises(ApiError) as caught:
        await gateway.chat(BODY)
    assert caught.value.status == 504
    await gateway.close()


async def test_what_botocore_refuses_to_send(gateway: BedrockGateway) -> None:
    with pytest.raises(ApiError, match="temperature") as caught:
        await gateway.chat({**BODY, "temperature": "hot"})
    assert caught.value.status == 400


async def test_credentials_that_expired_are_read_again(
    vendor: Vendor, gateway: BedrockGateway, aws_credentials: Path
) -> None:
    vendor.script = [said({"text": "1"}), failed("ExpiredTokenException", 403), said({"text": "2"})]
    await gateway.chat(BODY)
    aws_credentials.write_text("[default]\naws_access_key_id = SECOND\naws_secret_access_key = s\n")
    assert (await gateway.chat(BODY))["choices"][0]["message"]["content"] == "2"
    used = [asked.headers["authorization"].partition("Credential=")[2].partition("/")[0] for asked in vendor.asked]
    assert used == ["FIRST", "FIRST", "SECOND"]


async def test_no_credentials(vendor: Vendor, aws_credentials: Path) -> None:
    aws_credentials.unlink()
    gateway = await started(vendor)
    with pytest.raises(ApiError, match="NoCredentials") as caught:
        await gateway.chat(BODY)
    assert caught.value.status == 401
    await gateway.close()
    with pytest.raises(AppError):
        await started(vendor, profile="nobody")
    with pytest.raises(AppError):
        await started(vendor, role_arn="arn:aws:iam::123456789012:role/r")
