"""OpenAI's own wire format: https://platform.openai.com/docs/api-reference/chat."""

from __future__ import annotations

import pytest

from matrix.errors import AppError
from matrix.serving.backends import backend_of
from matrix.serving.gateways.base import Gateway
from matrix.spec.engine import OpenAIEngine
from matrix.spec.model import ModelSpec
from tests.serving.gateways.vendor import Reply, Vendor, chunks_of, data, refused, started, together

BODY = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0}
ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": "m-2026",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4, "cost": 0.001},
    "something_new": [1],
}
THROTTLED = Reply(
    {"error": {"message": "Rate limit reached", "type": "requests", "param": None, "code": "rate_limit_exceeded"}},
    429,
    {"Retry-After": "100"},
)


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-one")


def gateway(*urls: str, **engine: object) -> Gateway:
    spec = OpenAIEngine.model_validate({"kind": "openai", "base_url": [f"{url}/v1" for url in urls], **engine})
    return backend_of(spec, ModelSpec(name="m"))


def chunk(**delta: object) -> dict[str, object]:
    return {
        "id": "c",
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": delta, "finish_reason": None}],
    }


async def test_requests_and_answers_pass_through() -> None:
    async with Vendor(Reply(ANSWER)).listening() as vendor, started(gateway(vendor.url)) as openai:
        body = {**BODY, "top_k": 5, "chat_template_kwargs": {"x": None}, "max_tokens": None}
        assert await openai.chat(body) == ANSWER
        (asked,) = vendor.asked
        assert (asked.path, asked.headers["authorization"]) == ("/v1/chat/completions", "Bearer sk-one")
        assert asked.body == body
        assert openai.models() == ["m"]


async def test_no_key() -> None:
    vendor = Vendor(Reply(ANSWER))
    async with vendor.listening(), started(gateway(vendor.url, api_key_env=None)) as openai:
        assert await openai.chat(BODY) == ANSWER
    assert "sk-one" not in str(vendor.asked[0].headers)
    with pytest.raises(AppError, match="NO_SUCH_KEY"):
        gateway("http://127.0.0.1:1", api_key_env="NO_SUCH_KEY")


async def test_a_stream_with_a_tool_call() -> None:
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "add", "arguments": ""}}
    steps = [
        chunk(role="assistant", content=None),
        chunk(tool_calls=[call]),
        chunk(tool_calls=[{"index": 0, "function": {"arguments": '{"a": 1}'}}]),
        {**chunk(), "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]},
        {"id": "c", "object": "chat.completion.chunk", "choices": [], "usage": {"total_tokens": 9}},
    ]
    reply = Reply(events=data(*steps, "[DONE]"))
    async with Vendor(reply).listening() as vendor, started(gateway(vendor.url)) as openai:
        body = {**BODY, "stream": True, "stream_options": {"include_usage": True}}
        assert await chunks_of(openai, body) == steps
        assert vendor.asked[0].body == body
        told = together(await chunks_of(openai, BODY))
        assert told["tool_calls"] == [{**call, "function": {"name": "add", "arguments": '{"a": 1}'}}]
        assert "stream_options" not in vendor.asked[1].body, "not every server knows it"
    async with Vendor(reply).listening() as vendor, started(gateway(vendor.url, tokens_per_minute=1e6)) as openai:
        assert await chunks_of(openai, BODY) == steps[:-1]
        assert vendor.asked[0].body["stream_options"] == {"include_usage": True}


async def test_text_completions_and_embeddings() -> None:
    texts = data({"choices": [{"index": 0, "text": "lo"}]}, "[DONE]")
    vectors = {"object": "list", "data": [{"index": 0, "embedding": "AAAA"}], "usage": {"total_tokens": 2}}
    replies = Reply({"choices": [{"text": "lo"}]}), Reply(events=texts), Reply(vectors)
    async with Vendor(*replies).listening() as vendor, started(gateway(vendor.url)) as openai:
        assert await openai.complete({"prompt": "Hel"}) == {"choices": [{"text": "lo"}]}
        assert [one async for one in openai.stream_complete({"prompt": "Hel"})] == [
            {"choices": [{"index": 0, "text": "lo"}]}
        ]
        assert await openai.embed({"input": "x", "encoding_format": "base64"}) == vectors
        assert [asked.path for asked in vendor.asked] == ["/v1/completions", "/v1/completions", "/v1/embeddings"]
        assert vendor.asked[2].body == {"model": "m", "input": "x", "encoding_format": "base64"}


@pytest.mark.parametrize("streams", [False, True])
async def test_throttling_reaches_the_client(streams: bool) -> None:
    async with Vendor(THROTTLED).listening() as vendor, started(gateway(vendor.url)) as openai:
        error = await refused(chunks_of(openai, BODY) if streams else openai.chat(BODY))
        assert (error.status, error.retry_after_s, len(vendor.asked)) == (429, 100, 1)
        assert error.message == "The API: Rate limit reached"


async def test_a_short_throttle_is_waited_for() -> None:
    short = Reply(THROTTLED.body, 429, {"retry-after-ms": "50"})
    async with Vendor(short, Reply(ANSWER)).listening() as vendor, started(gateway(vendor.url)) as openai:
        assert await openai.chat(BODY) == ANSWER
        assert len(vendor.asked) == 2


async def test_an_account_without_money() -> None:
    broke = {
        "error": {"message": "You exceeded your quota", "type": "insufficient_quota", "code": "insufficient_quota"}
    }
    async with Vendor(Reply(broke, 429)).listening() as vendor, started(gateway(vendor.url)) as openai:
        error = await refused(openai.chat(BODY))
        assert (error.status, error.kind, len(vendor.asked)) == (429, "insufficient_quota", 1)


@pytest.mark.parametrize(
    ("reply", "status", "message"),
    [
        (Reply({"error": {"message": "Incorrect API key: sk-one", "code": "invalid_api_key"}}, 401), 401, "key: ***"),
        (Reply({"error": {"message": "no such field", "type": "invalid_request_error"}}, 400), 400, "no such field"),
        (Reply({"message": "vLLM's older shape"}, 404), 404, "older shape"),
        (Reply({"error": {"message": "boom"}}, 500), 502, "boom"),
        (Reply({"error": {"message": "boom"}}, 503, {"Retry-After": "99"}), 503, "boom"),
        (Reply(["no", "object"]), 502, "something else"),
    ],
)
async def test_what_the_client_gets_to_see(reply: Reply, status: int, message: str) -> None:
    async with Vendor(reply).listening() as vendor, started(gateway(vendor.url, max_attempts=1)) as openai:
        error = await refused(openai.chat(BODY))
        assert error.status == status
        assert message in error.message


async def test_a_time_out_and_nobody_there() -> None:
    async with Vendor(Reply(hangs=True)).listening() as vendor, started(gateway(vendor.url)) as openai:
        assert (await refused(openai.chat(BODY))).status == 504
    async with started(gateway(vendor.url, max_attempts=2)) as openai:
        error = await refused(openai.chat(BODY))
        assert error.status == 502
        assert "can't be reached" in error.message


async def test_an_error_within_a_stream() -> None:
    steps = data(chunk(content="a"), {"error": {"message": "out of memory", "type": "server_error"}})
    async with Vendor(Reply(events=steps)).listening() as vendor, started(gateway(vendor.url)) as openai:
        error = await refused(chunks_of(openai, BODY))
        assert (error.status, error.message, len(vendor.asked)) == (502, "The API: out of memory", 1)


async def test_replicas_share_a_key_and_its_limits() -> None:
    one, two = Vendor(Reply(ANSWER)), Vendor(Reply(ANSWER))
    async with one.listening(), two.listening(), started(gateway(one.url, two.url, requests_per_minute=600)) as openai:
        assert len({id(key.gate) for key in openai.keys}) == 1
        for _ in range(4):
            await openai.chat(BODY)
    assert len(one.asked) == len(two.asked) == 2
