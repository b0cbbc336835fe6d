"""The Llama API's wire format: https://llama.developer.meta.com/docs/api/chat."""

from __future__ import annotations

import pytest

from matrix.serving.backends import backend_of
from matrix.serving.gateways.base import Gateway
from matrix.spec.engine import LlamaApiEngine
from matrix.spec.model import ModelSpec
from tests.serving.gateways.vendor import Reply, Vendor, chunks_of, data, refused, started, together

MODEL = "Llama-4-Maverick-17B-128E-Instruct-FP8"
BODY = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9, "temperature": 0, "seed": 1}
METRICS = [
    {"metric": "num_completion_tokens", "value": 8, "unit": "tokens"},
    {"metric": "num_prompt_tokens", "value": 15, "unit": "tokens"},
    {"metric": "num_total_tokens", "value": 23, "unit": "tokens"},
]
USAGE = {"prompt_tokens": 15, "completion_tokens": 8, "total_tokens": 23}
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_API_KEY", "LLM|1")


def gateway(url: str, **engine: object) -> Gateway:
    spec = LlamaApiEngine.model_validate({"kind": "llama_api", "base_url": f"{url}/v1", **engine})
    return backend_of(spec, ModelSpec(name=MODEL))


def said(stop_reason: str = "stop", **message: object) -> Reply:
    told = {"role": "assistant", "stop_reason": stop_reason, **message}
    return Reply({"id": "AX1", "completion_message": told, "metrics": METRICS})


def event(kind: str, delta: object, **more: object) -> dict[str, object]:
    return {"id": "AX1", "event": {"event_type": kind, "delta": delta, **more}}


def text(said: str) -> dict[str, str]:
    return {"type": "text", "text": said}


async def test_an_answer() -> None:
    reply = said(content={"type": "text", "text": "Hello"})
    async with Vendor(reply).listening() as vendor, started(gateway(vendor.url)) as llama:
        answer = await llama.chat({**BODY, "top_k": -1, "repetition_penalty": 1.1})
    (asked,) = vendor.asked
    assert (asked.path, asked.headers["authorization"]) == ("/v1/chat/completions", "Bearer LLM|1")
    assert asked.body == {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Hi"}],
        "max_completion_tokens": 9,
        "temperature": 0,
        "repetition_penalty": 1.1,
    }
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Hello"}
    assert (answer["id"], answer["model"], choice["finish_reason"], answer["usage"]) == ("AX1", MODEL, "stop", USAGE)


async def test_tools_and_a_schema() -> None:
    call = {"id": "c1", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "developer", "content": "Be brief"},
        {"role": "assistant", "content": None, "tool_calls": [{**call, "type": "function"}]},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
    ]
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True}}
    body = {"messages": messages, "tools": [ADD], "tool_choice": "required", "response_format": wanted}
    reply = said("tool_calls", content=text(""), tool_calls=[call])
    async with Vendor(reply).listening() as vendor, started(gateway(vendor.url)) as llama:
        answer = await llama.chat(body)
    asked = vendor.asked[0].body
    assert asked["messages"] == [
        {"role": "system", "content": "Be brief"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
    ]
    assert (asked["tools"], asked["tool_choice"]) == ([ADD], "required")
    assert asked["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": {"type": "object"}},
    }
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": None, "tool_calls": [{**call, "type": "function"}]}
    assert choice["finish_reason"] == "tool_calls"


async def test_a_stream() -> None:
    events = data(
        event("start", text("")),
        event("progress", text("Hel")),
        event("progress", text("lo")),
        event("complete", text(""), stop_reason="length"),
        event("metrics", text(""), metrics=METRICS),
    )
    async with Vendor(Reply(events=events)).listening() as vendor, started(gateway(vendor.url)) as llama:
        chunks = await chunks_of(llama, {**BODY, "stream_options": {"include_usage": True}})
        assert vendor.asked[0].body["stream"] is True
    told = together(chunks)
    assert [told[name] for name in ("role", "content", "finish_reason", "usage", "id")] == [
        "assistant",
        "Hello",
        "length",
        USAGE,
        "AX1",
    ]


async def test_a_stream_of_tool_calls() -> None:
    def step(**delta: object) -> dict[str, object]:
        return event("progress", {"type": "tool_call", **delta})

    events = data(
        event("start", text("")),
        step(id="c1", function={"name": "add", "arguments": ""}),
        step(function={"arguments": '{"a"'}),
        step(function={"arguments": ": 1}"}),
        step(id="c2", function={"name": "sub", "arguments": "{}"}),
        event("complete", text(""), stop_reason="tool_calls"),
    )
    async with Vendor(Reply(events=events)).listening() as vendor, started(gateway(vendor.url)) as llama:
        told = together(await chunks_of(llama, {**BODY, "tools": [ADD]}))
    calls = [(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in told["tool_calls"]]
    assert calls == [("c1", "add", '{"a": 1}'), ("c2", "sub", "{}")]
    assert told["finish_reason"] == "tool_calls"


async def test_throttling_auth_time_out_and_a_broken_stream() -> None:
    busy = Reply({"title": "Rate limited", "detail": "Too many requests", "status": 429}, 429, {"Retry-After": "45"})
    async with Vendor(busy).listening() as vendor, started(gateway(vendor.url)) as llama:
        error = await refused(llama.chat(BODY))
        assert (error.status, error.retry_after_s) == (429, 45)
        assert error.message == "The Llama API: Too many requests"
    denied = Reply({"error": {"message": "Bad key LLM|1"}}, 401)
    async with Vendor(denied).listening() as vendor, started(gateway(vendor.url)) as llama:
        error = await refused(llama.chat(BODY))
        assert (error.status, error.message) == (401, "The Llama API: Bad key ***")
    async with Vendor(Reply(hangs=True)).listening() as vendor, started(gateway(vendor.url)) as llama:
        assert (await refused(llama.chat(BODY))).status == 504
    half = Reply(events=data(event("progress", text("Hel"))))
    async with Vendor(half).listening() as vendor, started(gateway(vendor.url)) as llama:
        error = await refused(chunks_of(llama, BODY))
        assert (error.status, len(vendor.asked)) == (502, 1)


@pytest.mark.parametrize(
    "field", [{"logprobs": True}, {"stop": ["a"]}, {"response_format": {"type": "json_object"}}, {"messages": [{}]}]
)
async def test_what_it_doesnt_have(field: dict[str, object]) -> None:
    async with Vendor(said(content="x")).listening() as vendor, started(gateway(vendor.url)) as llama:
        assert (await refused(llama.chat({**BODY, **field}))).status == 400
        assert not vendor.asked
        assert (await llama.chat({**BODY, "stop": [], "presence_penalty": 0}))["choices"]
