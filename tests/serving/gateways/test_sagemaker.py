"""SageMaker's gateway against a local server with its invocations API, and a local STS that hands out a role."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from urllib.parse import parse_qs

import pytest

from matrix.serving.backend import ApiError, Json
from matrix.serving.gateways.sagemaker import SagemakerGateway
from matrix.spec.engine import SagemakerEngine
from matrix.spec.model import ModelSpec
from tests.serving.gateways.wire import Answer, Vendor, collected, event, of_events, of_json, serving, text_of

MODEL = ModelSpec(name="llama")
BODY: Json = {"model": "llama", "messages": [{"role": "user", "content": "1+1?"}], "max_tokens": 9}
USAGE = {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}
TOOL_CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
MESSAGE = {"role": "assistant", "content": "2", "reasoning_content": "hm", "tool_calls": [TOOL_CALL]}
COMPLETION = {"choices": [{"index": 0, "message": MESSAGE, "finish_reason": "stop"}], "usage": USAGE}

pytestmark = pytest.mark.usefixtures("aws_credentials")


async def started(vendor: Vendor, **engine: Any) -> SagemakerGateway:
    engine = {"kind": "sagemaker", "region": "us-east-1", "endpoint": "e1", "base_url": vendor.url, **engine}
    gateway = SagemakerGateway(SagemakerEngine.model_validate({"max_attempts": 1, **engine}), MODEL)
    await gateway.start()
    return gateway


@pytest.fixture
async def gateway(vendor: Vendor) -> AsyncIterator[SagemakerGateway]:
    made = await started(vendor)
    yield made
    await made.close()


def chunk(text: str, finish: str | None = None) -> bytes:
    told = {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}
    return f"data: {json.dumps(told)}\n\n".encode()


def parts(sse: bytes, *cuts: int) -> list[bytes]:
    """Server-sent events in payload parts that are cut at these places."""
    ends = [0, *cuts, len(sse)]
    return [event("PayloadPart", sse[start:end]) for start, end in pairwise(ends)]


async def test_an_answer_and_the_request_as_it_is(vendor: Vendor, gateway: SagemakerGateway) -> None:
    vendor.script = [of_json(COMPLETION)]
    schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
    body = {**BODY, "response_format": schema, "tools": [], "min_p": 0.1}
    assert await gateway.chat(body) == COMPLETION
    (asked,) = vendor.asked
    assert asked.path == "/endpoints/e1/invocations"
    assert asked.json == body


async def test_a_stream(vendor: Vendor, gateway: SagemakerGateway) -> None:
    usage = f"data: {json.dumps({'choices': [], 'usage': USAGE})}\n\n".encode()
    sse = b": ping\n\n" + chunk("t") + chunk("wö", "stop") + usage + b"data: [DONE]\n\n"
    vendor.script = [of_events(*parts(sse, 5, 30, 90, 131, len(sse) - 3))]
    chunks = await collected(gateway.stream_chat({**BODY, "stream_options": {"include_usage": True}}))
    assert text_of(chunks) == "twö"
    assert chunks[-1]["usage"] == USAGE
    (asked,) = vendor.asked
    assert asked.path == "/endpoints/e1/invocations-response-stream"
    assert asked.json == {**BODY, "stream": True, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize(
    ("last", "status"),
    [
        (event("ModelStreamError", b'{"Message": "broken", "ErrorCode": "x"}', "exception"), 502),
        (event("PayloadPart", b'data: {"error": {"message": "slow", "code": 429}}\n\n'), 429),
        (event("PayloadPart", b"data: no json\n\n"), 502),
        (event("PayloadPart", b""), 502),
    ],
)
async def test_a_stream_that_fails(vendor: Vendor, gateway: SagemakerGateway, last: bytes, status: int) -> None:
    vendor.script = [of_events(*parts(chunk("t")), last)]
    stream = gateway.stream_chat(BODY)
    assert text_of([await anext(stream)]) == "t"
    with pytest.raises(ApiError) as caught:
        await anext(stream)
    assert caught.value.status == status


def failed(code: str, status: int, **more: Any) -> Answer:
    return of_json({"Message": "no", **more}, status, **{"x-amzn-errortype": code})


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (failed("ModelError", 424, OriginalStatusCode=400, OriginalMessage="bad"), 400),
        (failed("ModelError", 424, OriginalStatusCode=429), 429),
        (failed("ModelError", 424, OriginalStatusCode=500), 502),
        (failed("ModelError", 424, OriginalStatusCode=503), 503),
        (failed("ModelError", 424), 502),
        (failed("ThrottlingException", 400), 429),
        (failed("ValidationError", 400), 400),
        (failed("AccessDeniedException", 403), 403),
        (failed("ExpiredTokenException", 403), 401),
        (failed("ServiceUnavailable", 503), 503),
        (failed("InternalFailure", 500), 502),
        (failed("InternalDependencyException", 530), 502),
        (failed("ModelNotReadyException", 429), 503),
        (Answer([b"no json"]), 502),
        (of_json({"error": "bad"}), 502),
    ],
)
async def test_errors(vendor: Vendor, gateway: SagemakerGateway, answer: Answer, status: int) -> None:
    vendor.script = [answer, answer]
    with pytest.raises(ApiError) as caught:
        await gateway.chat(BODY)
    assert caught.value.status == status


async def test_a_time_out(vendor: Vendor) -> None:
    gateway = await started(vendor, timeout_s=0.2)
    vendor.script = [Answer(delay_s=1)]
    with pytest.raises(ApiError) as caught:
        await gateway.chat(BODY)
    assert caught.value.status == 504
    await gateway.close()


async def test_text_completions_and_embeddings(vendor: Vendor, gateway: SagemakerGateway) -> None:
    vendor.script = [of_json({"choices": [{"text": "x"}]}), of_json({"data": []})]
    assert await gateway.complete({"prompt": "a"}) == {"choices": [{"text": "x"}]}
    assert await gateway.embed({"input": "a"}) == {"data": []}
    assert [asked.json for asked in vendor.asked] == [{"prompt": "a"}, {"input": "a"}]


def role(key: str, lives: timedelta) -> Answer:
    """An answer of AssumeRole: https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html."""
    expiration = (datetime.now(UTC) + lives).strftime("%Y-%m-%dT%H:%M:%SZ")
    xml = f"""<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials>
        <AccessKeyId>{key}</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>token-of-{key}</SessionToken>
        <Expiration>{expiration}</Expiration></Credentials><AssumedRoleUser>
        <Arn>arn:aws:sts::123456789012:assumed-role/r/matrix</Arn><AssumedRoleId>A:matrix</AssumedRoleId>
        </AssumedRoleUser></AssumeRoleResult></AssumeRoleResponse>"""
    return Answer([xml.encode()], headers={"Content-Type": "text/xml"})


ROLE = "arn:aws:iam::123456789012:role/r"


async def test_a_role_is_assumed_again_before_it_expires(vendor: Vendor, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as sts:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts.url)
        sts.script = [role("ROLE1", timedelta(minutes=5)), role("ROLE2", timedelta(hours=1))]
        gateway = await started(vendor, role_arn=ROLE)
        vendor.script = [of_json(COMPLETION)] * 3
        for _ in range(3):
            await gateway.chat(BODY)
        await gateway.close()
    assert [asked.headers["x-amz-security-token"] for asked in vendor.asked] == [
        "token-of-ROLE1",
        "token-of-ROLE2",
        "token-of-ROLE2",
    ]
    form = parse_qs(sts.asked[0].body.decode())
    assert (form["Action"], form["RoleArn"]) == (["AssumeRole"], [ROLE])
    assert "Credential=FIRST/" in sts.asked[0].headers["authorization"]


async def test_a_role_whose_credentials_are_refused_is_assumed_anew(
    vendor: Vendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving() as sts:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts.url)
        sts.script = [role("ROLE1", timedelta(hours=1)), role("ROLE2", timedelta(hours=1))]
        gateway = await started(vendor, role_arn=ROLE)
        vendor.script = [failed("ExpiredTokenException", 403), of_json(COMPLETION)]
        assert await gateway.chat(BODY) == COMPLETION
        await gateway.close()
    assert vendor.asked[1].headers["x-amz-security-token"] == "token-of-ROLE2"


async def test_a_role_that_must_not_be_assumed(vendor: Vendor, monkeypatch: pytest.MonkeyPatch) -> None:
    denied = b"<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>no</Message></Error></ErrorResponse>"
    async with serving() as sts:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts.url)
        sts.script = [Answer([denied], 403, {"Content-Type": "text/xml"})]
        gateway = await started(vendor, role_arn=ROLE)
        with pytest.raises(ApiError, match="AccessDenied: no") as caught:
            await gateway.chat(BODY)
        await gateway.close()
    assert caught.value.status == 403
