"""Anthropic's wire format: https://platform.claude.com/docs/en/api/messages and .../build-with-claude/streaming."""

from __future__ import annotations

from typing import Any

import pytest

from matrix.serving.backends import backend_of
from matrix.serving.gateways import base
from matrix.serving.gateways.base import Gateway
from matrix.spec.engine import AnthropicEngine
from matrix.spec.model import ModelSpec
from tests.serving.gateways.vendor import Reply, Vendor, chunks_of, named, refused, started, together

MODEL = "claude-haiku-4-5"
BODY = {"messages": [{"role": "user", "content": "Hi"}], "temperature": 0, "seed": 1}
ADD = {"name": "add", "description": "Adds", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}
USAGE = {
    "input_tokens": 10,
    "cache_creation_input_tokens": 5,
    "cache_read_input_tokens": 20,
    "output_tokens": 7,
    "output_tokens_details": {"thinking_tokens": 4},
    "service_tier": "standard",
}
TOLD_USAGE = {
    "prompt_tokens": 35,
    "completion_tokens": 7,
    "total_tokens": 42,
    "prompt_tokens_details": {"cached_tokens": 20},
    "completion_tokens_details": {"reasoning_tokens": 4},
    "cache_creation_input_tokens": 5,
}
THOUGHT = {"type": "thinking", "thinking": "Hm", "signature": "sig=="}
HIDDEN = {"type": "redacted_thinking", "data": "EmwK"}


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-1")
    monkeypatch.setattr(base, "_FIRST_PAUSE_S", 0.01)


def gateway(url: str, **engine: object) -> Gateway:
    spec = AnthropicEngine.model_validate({"kind": "anthropic", "base_url": url, **engine})
    return backend_of(spec, ModelSpec(name=MODEL))


def said(*content: dict[str, Any], stop_reason: str = "end_turn") -> Reply:
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": MODEL}
    tail = {"stop_reason": stop_reason, "stop_sequence": None, "usage": USAGE}
    return Reply({**head, "content": list(content), **tail})


def text(said: str) -> dict[str, str]:
    return {"type": "text", "text": said}


def failed(kind: str, message: str, **more: object) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message, **more}, "request_id": "req_1"}


def streamed(
    *blocks: tuple[dict[str, Any], list[dict[str, Any]]], stop_reason: str = "end_turn"
) -> list[dict[str, Any]]:
    """The events of an answer: each block as it starts, and its deltas."""
    started = {
        **said().body,
        "stop_reason": None,
        "usage": {**USAGE, "output_tokens": 1, "output_tokens_details": None},
    }
    events: list[dict[str, Any]] = [{"type": "message_start", "message": started}]
    for index, (block, deltas) in enumerate(blocks):
        events.append({"type": "content_block_start", "index": index, "content_block": block})
        events.append({"type": "ping"})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    usage = {"output_tokens": 7, "output_tokens_details": {"thinking_tokens": 4}}
    delta = {"stop_reason": stop_reason, "stop_sequence": None}
    return [*events, {"type": "message_delta", "delta": delta, "usage": usage}, {"type": "message_stop"}]


async def sent(body: dict[str, Any], **engine: object) -> dict[str, Any]:
    """What Anthropic gets for a request."""
    async with Vendor(said(text("x"))).listening() as vendor, started(gateway(vendor.url, **engine)) as claude:
        await claude.chat(body)
    return vendor.asked[0].body


async def test_an_answer() -> None:
    async with Vendor(said(text("Hel"), text("lo"))).listening() as vendor, started(gateway(vendor.url)) as claude:
        answer = await claude.chat({**BODY, "stop": "END", "max_completion_tokens": 5, "top_k": 3})
    (asked,) = vendor.asked
    assert asked.path == "/v1/messages"
    assert asked.headers["authorization"] == "Bearer sk-ant-1"
    assert asked.body == {
        "model": MODEL,
        "messages": [{"role": "user", "content": [text("Hi")]}],
        "max_tokens": 5,
        "temperature": 0,
        "top_k": 3,
        "stop_sequences": ["END"],
    }
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Hello"}
    assert (answer["id"], answer["model"], choice["finish_reason"]) == ("msg_1", MODEL, "stop")
    assert answer["usage"] == TOLD_USAGE


@pytest.mark.parametrize(
    ("stop_reason", "finish_reason"),
    [("max_tokens", "length"), ("stop_sequence", "stop"), ("refusal", "content_filter"), ("pause_turn", "stop")],
)
async def test_why_it_ended(stop_reason: str, finish_reason: str) -> None:
    reply = said(text("x"), stop_reason=stop_reason)
    async with Vendor(reply).listening() as vendor, started(gateway(vendor.url)) as claude:
        assert (await claude.chat(BODY))["choices"][0]["finish_reason"] == finish_reason


async def test_sampling_needs_the_older_version() -> None:
    async with Vendor(said(text("x"))).listening() as vendor, started(gateway(vendor.url)) as claude:
        await claude.chat({**BODY, "temperature": 1.0, "top_p": 1, "top_k": -1})
        await claude.chat({**BODY, "temperature": 0})
    new, old = vendor.asked
    assert new.headers["anthropic-version"] > old.headers["anthropic-version"] == "2023-06-01"
    assert new.body.keys().isdisjoint({"temperature", "top_p", "top_k"})
    assert old.body["temperature"] == 0


async def test_a_conversation_with_images_and_tools() -> None:
    call = {"id": "toolu_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    other = {"id": "toolu_2", "type": "function", "function": {"name": "add", "arguments": ""}}
    messages = [
        {"role": "system", "content": "Be brief"},
        {"role": "developer", "content": [text("and kind")]},
        {
            "role": "user",
            "content": [
                text("Look"),
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}},
                {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
            ],
        },
        {"role": "assistant", "content": "So", "tool_calls": [call, other], "thinking_blocks": [THOUGHT, HIDDEN]},
        {"role": "tool", "tool_call_id": "toolu_1", "content": "2"},
        {"role": "tool", "tool_call_id": "toolu_2", "content": [text("none")]},
        {"role": "user", "content": "Go on"},
    ]
    body = await sent({"messages": messages, "tools": [{"type": "function", "function": ADD}]})
    assert body["system"] == "Be brief\n\nand kind"
    image = {"type": "base64", "media_type": "image/png", "data": "iVBORw=="}
    assert body["messages"] == [
        {
            "role": "user",
            "content": [
                text("Look"),
                {"type": "image", "source": image},
                {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
            ],
        },
        {
            "role": "assistant",
            "content": [
                THOUGHT,
                HIDDEN,
                text("So"),
                {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {"a": 1}},
                {"type": "tool_use", "id": "toolu_2", "name": "add", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": [text("2")]},
                {"type": "tool_result", "tool_use_id": "toolu_2", "content": [text("none")]},
                text("Go on"),
            ],
        },
    ]
    assert body["tools"] == [{"name": "add", "description": "Adds", "input_schema": ADD["parameters"]}]
    assert "tool_choice" not in body


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"tool_choice": "required"}, {"type": "any"}),
        ({"tool_choice": "none"}, {"type": "none"}),
        ({"tool_choice": {"type": "function", "function": {"name": "add"}}}, {"type": "tool", "name": "add"}),
        ({"parallel_tool_calls": False}, {"type": "auto", "disable_parallel_tool_use": True}),
    ],
)
async def test_which_tool(asked: dict[str, Any], told: dict[str, Any]) -> None:
    assert (await sent({**BODY, "tools": [{"type": "function", "function": ADD}], **asked}))["tool_choice"] == told


async def test_a_tool_call() -> None:
    use = {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {"a": 1}}
    async with Vendor(said(use, stop_reason="tool_use")).listening() as vendor, started(gateway(vendor.url)) as claude:
        (choice,) = (await claude.chat(BODY))["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert call == {"id": "toolu_1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}


async def test_a_json_schema() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}
    body = await sent({**BODY, "response_format": wanted})
    assert body["output_config"] == {"format": {"type": "json_schema", "schema": schema}}


@pytest.mark.parametrize(
    ("asked", "budget", "thinking", "effort", "limit"),
    [
        ({}, None, None, None, 8192),
        ({}, 2000, {"type": "enabled", "budget_tokens": 2000}, None, 10192),
        ({"max_tokens": 4000}, 2000, {"type": "enabled", "budget_tokens": 2000}, None, 4000),
        ({"reasoning_effort": "minimal"}, 2000, {"type": "adaptive", "display": "summarized"}, "low", 8192),
        ({"reasoning_effort": "none"}, 2000, {"type": "disabled"}, None, 8192),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 1024}},
            None,
            {"type": "enabled", "budget_tokens": 1024},
            None,
            9216,
        ),
        ({"thinking": {"type": "adaptive"}, "reasoning_effort": "max"}, None, {"type": "adaptive"}, "max", 8192),
    ],
)
async def test_how_long_it_thinks(
    asked: dict[str, Any], budget: int | None, thinking: dict[str, Any] | None, effort: str | None, limit: int
) -> None:
    body = await sent({**BODY, **asked}, thinking_budget=budget)
    assert body.get("thinking") == thinking
    assert body.get("output_config", {}).get("effort") == effort
    assert body["max_tokens"] == limit


async def test_thoughts_and_their_signature() -> None:
    async with Vendor(said(THOUGHT, HIDDEN, text("4"))).listening() as vendor, started(gateway(vendor.url)) as claude:
        message = (await claude.chat(BODY))["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("4", "Hm")
    assert message["thinking_blocks"] == [THOUGHT, HIDDEN]


async def test_a_stream() -> None:
    events = streamed(
        (
            {"type": "thinking", "thinking": "", "signature": ""},
            [
                {"type": "thinking_delta", "thinking": "H"},
                {"type": "thinking_delta", "thinking": "m"},
                {"type": "signature_delta", "signature": "sig=="},
            ],
        ),
        (HIDDEN, []),
        (text(""), [{"type": "text_delta", "text": "I "}, {"type": "text_delta", "text": "add"}]),
        (
            {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {}},
            [
                {"type": "input_json_delta", "partial_json": ""},
                {"type": "input_json_delta", "partial_json": '{"a"'},
                {"type": "input_json_delta", "partial_json": ": 1}"},
            ],
        ),
        ({"type": "tool_use", "id": "toolu_2", "name": "now", "input": {}}, []),
        stop_reason="tool_use",
    )
    async with Vendor(Reply(events=named(*events))).listening() as vendor, started(gateway(vendor.url)) as claude:
        chunks = await chunks_of(claude, {**BODY, "stream_options": {"include_usage": True}})
        assert vendor.asked[0].body["stream"] is True
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "reasoning_content": "H"}
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    told = together(chunks)
    assert (told["role"], told["content"], told["reasoning_content"]) == ("assistant", "I add", "Hm")
    assert told["thinking_blocks"] == [THOUGHT, HIDDEN]
    calls = [(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in told["tool_calls"]]
    assert calls == [("toolu_1", "add", '{"a": 1}'), ("toolu_2", "now", "{}")]
    assert (told["finish_reason"], told["usage"], told["id"]) == ("tool_calls", TOLD_USAGE, "msg_1")


async def test_several_answers() -> None:
    replies = [said(text(one)) for one in "abc"]
    async with Vendor(*replies).listening() as vendor, started(gateway(vendor.url)) as claude:
        answer = await claude.chat({**BODY, "n": 3})
    assert sorted(choice["message"]["content"] for choice in answer["choices"]) == ["a", "b", "c"]
    assert answer["usage"]["total_tokens"] == 3 * 42
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 60}


@pytest.mark.parametrize("streams", [False, True])
async def test_throttling_reaches_the_client(streams: bool) -> None:
    reply = Reply(failed("rate_limit_error", "Too many tokens"), 429, {"retry-after": "77"})
    async with Vendor(reply).listening() as vendor, started(gateway(vendor.url)) as claude:
        error = await refused(chunks_of(claude, BODY) if streams else claude.chat(BODY))
    assert (error.status, error.retry_after_s, error.kind) == (429, 77, "rate_limit_error")
    assert error.message == "Anthropic's API: Too many tokens"


@pytest.mark.parametrize(
    ("reply", "status", "calls"),
    [
        (Reply(failed("authentication_error", "invalid x-api-key"), 401), 401, 1),
        (Reply(failed("permission_error", "no"), 403), 403, 1),
        (Reply(failed("invalid_request_error", "max_tokens"), 400), 400, 1),
        (Reply(failed("not_found_error", "model"), 404), 404, 1),
        (Reply(failed("overloaded_error", "Overloaded"), 529), 503, 2),
        (Reply(failed("api_error", "boom"), 500), 502, 2),
        (
            Reply(failed("rate_limit_error", "broke", details={"error_code": "enforced_spend_limit_reached"}), 429),
            429,
            1,
        ),
        (Reply(events=named(failed("overloaded_error", "Overloaded"))), 503, 2),
        (Reply(events=named(streamed()[0], failed("rate_limit_error", "wait"))), 429, 2),
        (Reply(events=named(*streamed((text(""), [{"type": "text_delta", "text": "a"}]))[:-2])), 502, 1),
    ],
)
async def test_what_the_client_gets_to_see(reply: Reply, status: int, calls: int) -> None:
    async with Vendor(reply).listening() as vendor, started(gateway(vendor.url, max_attempts=2)) as claude:
        error = await refused(chunks_of(claude, BODY) if reply.events else claude.chat(BODY))
        assert (error.status, len(vendor.asked)) == (status, calls)
        assert "sk-ant" not in error.message


@pytest.mark.parametrize("events", [(), named(*streamed((text(""), [{"type": "text_delta", "text": "a"}]))[:4])])
async def test_a_time_out(events: list[str]) -> None:
    reply = Reply(events=events, hangs=True)
    async with Vendor(reply).listening() as vendor, started(gateway(vendor.url)) as claude:
        assert (await refused(chunks_of(claude, BODY) if events else claude.chat(BODY))).status == 504
        assert len(vendor.asked) == 1


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"logprobs": True}, "has no logprobs"),
        ({"frequency_penalty": 0.5, "min_p": 0.1}, "has no frequency_penalty, min_p"),
        ({"response_format": {"type": "json_object"}}, "json_object"),
        ({"reasoning_effort": "huge"}, "reasoning_effort='huge'"),
        ({"messages": [{"content": "no role"}]}, "KeyError: 'role'"),
        ({"messages": [{"role": "user", "content": [{"type": "video_url"}]}]}, "'video_url'"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": "data:image/png;base64,é"}]}
                ]
            },
            "",
        ),
    ],
)
async def test_what_it_doesnt_have(field: dict[str, Any], message: str) -> None:
    async with Vendor(said(text("x"))).listening() as vendor, started(gateway(vendor.url)) as claude:
        error = await refused(claude.chat({**BODY, **field}))
        assert error.status == 400
        assert message in error.message
        assert not vendor.asked
        for call in (claude.complete({"prompt": "x"}), claude.embed({"input": "x"})):
            assert (await refused(call)).status == 404
