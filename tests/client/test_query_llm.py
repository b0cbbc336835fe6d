"""`make_request` and `batch_requests`: what is sent, what comes back, and that a failure is a row."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pytest

from matrix.client import batches
from matrix.client.query_llm import batch_requests, generate, make_request
from matrix.errors import ConfigError
from tests.fake_engine import FakeEngine, Fault

HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hello you"}]}
NOWHERE = "http://127.0.0.1:9/v1"


def say(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


async def test_the_row_of_a_chat_and_what_is_sent_by_default() -> None:
    before = time.time()
    async with FakeEngine() as engine:
        row = await make_request(engine.url, "fake", {**HELLO, "metadata": {"line": 3}, "mine": 1})
    assert engine.requests == [
        {"model": "fake", **HELLO, "temperature": 0.7, "max_tokens": 1024, "top_p": 0.9, "n": 1},
    ]
    assert "Authorization" not in engine.headers[0]
    asked, answered = row["request"]["metadata"].pop("request_timestamp"), row["response"].pop("response_timestamp")
    assert before <= asked <= answered <= time.time()
    assert row == {
        "request": {**HELLO, "metadata": {"line": 3}, "mine": 1},
        "response": {
            "finish_reason": ["stop"],
            "text": ["hello you"],
            "usage": {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4},
        },
    }


async def test_the_caller_s_data_stays_as_it_is() -> None:
    data = {**HELLO, "metadata": {"line": 3}}
    async with FakeEngine() as engine:
        rows = [await make_request(engine.url, "fake", data) for _ in range(2)]
    assert data == {**HELLO, "metadata": {"line": 3}}
    first, second = (row["request"]["metadata"]["request_timestamp"] for row in rows)
    assert first < second


async def test_a_completion() -> None:
    async with FakeEngine() as engine:
        row = await make_request(
            engine.url, "fake", {"prompt": "a b"}, logprobs=True, prompt_logprobs=0, n=2, seed=5, max_tokens=7
        )
    sent = engine.requests[0]
    assert (sent["prompt"], sent["logprobs"], sent["prompt_logprobs"], sent["seed"]) == ("a b", 1, 0, 5)
    assert (sent["max_tokens"], sent["n"]) == (7, 2)
    token = {"token": "a", "logprob": -0.5, "top_logprobs": [{"token": "a", "logprob": -0.5}]}
    assert row["response"]["text"] == ["a b", "a b"]
    assert row["response"]["logprobs"][1][0] == token
    assert row["response"]["prompt_logprobs"] == [[None, {"7": {"logprob": -1.0}}]] * 2


async def test_logprobs_of_a_chat() -> None:
    async with FakeEngine() as engine:
        row = await make_request(engine.url, "fake", HELLO, n=2, top_logprobs=3)
        without = await make_request(engine.url, "fake", HELLO)
    assert (engine.requests[0]["logprobs"], engine.requests[0]["top_logprobs"]) == (True, 3)
    assert row["response"]["logprobs"] == [[{"token": word, "logprob": -0.5} for word in ("hello", "you")]] * 2
    assert row["response"]["finish_reason"] == ["stop", "stop"]
    assert "logprobs" not in without["response"]


async def test_tool_calls_and_reasoning() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    tool = {"type": "function", "function": {"name": "f"}}
    async with FakeEngine(lambda _: {"reasoning": "hm", "tool_calls": [call]}) as engine:
        row = await make_request(engine.url, "fake", HELLO, tools=(one for one in [tool]), tool_choice="auto")
    assert engine.requests[0]["tools"] == [tool]
    assert engine.requests[0]["tool_choice"] == "auto"
    assert "text" not in row["response"]
    assert row["response"]["tool_calls"] == [[{"name": "f", "arguments": '{"a": 1}', "id": "1"}]]
    assert row["response"]["reasoning_content"] == ["hm"]


async def test_openai_s_not_given_is_not_sent() -> None:
    from openai import NOT_GIVEN

    async with FakeEngine() as engine:
        row = await make_request(engine.url, "fake", HELLO, tools=NOT_GIVEN, tool_choice=NOT_GIVEN)
    assert row["response"]["text"] == ["hello you"]
    assert not {"tools", "tool_choice"} & engine.requests[0].keys()


async def test_what_vllm_knows_beyond_openai() -> None:
    schema = {"type": "object"}
    async with FakeEngine() as engine:
        await make_request(
            engine.url,
            "fake",
            HELLO,
            top_k=5,
            guided_decoding={"json": schema},
            extra_body={"min_p": 0.1, "response_format": {"type": "json_object"}, "temperature": 0},
        )
    sent = engine.requests[0]
    assert sent["structured_outputs"] == {"json": schema}
    assert (sent["top_k"], sent["min_p"], sent["temperature"]) == (5, 0.1, 0)
    assert sent["response_format"] == {"type": "json_object"}
    assert not any(name.startswith("guided_") for name in sent)


@pytest.mark.parametrize(
    ("constraint", "message"),
    [({"jsn": {}}, "did you mean json"), ({"json": {}, "regex": "a"}, "takes one"), ({"json": None}, "takes one")],
)
async def test_a_constraint_that_would_be_ignored_is_refused(constraint: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        await make_request(NOWHERE, "fake", HELLO, guided_decoding=constraint)


async def test_a_refusal_is_a_row() -> None:
    async with FakeEngine(fail=[Fault.http(400, "context is too long")]) as engine:
        row = await make_request(engine.url, "fake", HELLO)
    assert len(engine.requests) == 1
    assert "context is too long" in row["response"]["error"]
    assert row["response"].keys() == {"error", "response_timestamp"}
    assert row["request"]["messages"] == HELLO["messages"]


async def test_tries_are_those_that_were_asked_for() -> None:
    async with FakeEngine(fail=[Fault.http(500)] * 2) as engine:
        row = await make_request(engine.url, "fake", HELLO, initial_delay=0.01)
        assert row["response"]["text"] == ["hello you"]
        assert len(engine.requests) == 3
    async with FakeEngine(fail=lambda _: Fault.http(500)) as engine:
        row = await make_request(engine.url, "fake", HELLO, max_retries=2, initial_delay=0.01)
        assert "500" in row["response"]["error"]
        assert len(engine.requests) == 2


async def test_waits_grow_by_the_factor() -> None:
    async with FakeEngine(fail=[Fault.http(500)] * 2) as engine:
        started = time.monotonic()
        await make_request(engine.url, "fake", HELLO, initial_delay=0.1, backoff_factor=6)
    # 0.1 and 0.6, of which chance takes up to a half.
    assert 0.35 <= time.monotonic() - started < 3


async def test_a_try_that_hangs_is_left_after_its_time() -> None:
    async with FakeEngine(fail=[Fault.hang()]) as engine:
        row = await make_request(engine.url, "fake", HELLO, timeout_secs=0.2, initial_delay=0.01)
    assert row["response"]["text"] == ["hello you"]
    async with FakeEngine(fail=lambda _: Fault.hang()) as engine:
        row = await make_request(engine.url, "fake", HELLO, timeout_secs=0.2, max_retries=1)
    assert "no answer within 0.2 s" in row["response"]["error"]


async def test_a_dead_server_fails_at_once_without_retries_and_soon_with() -> None:
    started = time.monotonic()
    rows = [await make_request(NOWHERE, "fake", HELLO, max_retries=1) for _ in range(3)]
    assert time.monotonic() - started < 2.5
    assert all("127.0.0.1:9" in row["response"]["error"] for row in rows)


@pytest.mark.parametrize("fault", [Fault.http(429), Fault.http(503, headers={"Retry-After": "3600"})])
async def test_patience_with_a_busy_server_ends(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "_PATIENCE_S", 0.2)
    started = time.monotonic()
    async with FakeEngine(fail=lambda _: fault) as engine:
        row = await make_request(engine.url, "fake", HELLO, max_retries=3, initial_delay=0.05)
        also = await make_request(engine.url, "fake", HELLO, max_retries=1)
    assert time.monotonic() - started < 2
    assert str(fault.status) in row["response"]["error"]
    assert str(fault.status) in also["response"]["error"]


async def test_a_server_that_comes_back_is_waited_for() -> None:
    engine = FakeEngine()
    await engine.start()
    await engine.stop()
    asked = asyncio.create_task(make_request(engine.url, "fake", HELLO, initial_delay=0.05))
    await asyncio.sleep(0.3)
    async with engine:
        row = await asked
    assert row["response"]["text"] == ["hello you"]


@pytest.mark.parametrize("data", [{"text": "hello"}, {}, "hello", None])
async def test_data_that_is_no_request_is_a_row(data: Any) -> None:
    row = await make_request(NOWHERE, "fake", data)
    assert "'messages' or 'prompt'" in row["response"]["error"]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("host", "gRPC"),
        ("grpc://a:1/v1", "gRPC"),
        (["http://a/v1", "host:50051"], "gRPC"),
        ("", "is empty"),
        (None, "endpoint_cache"),
    ],
)
async def test_a_url_that_no_request_could_have_is_refused(url: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        await make_request(url, "fake", HELLO)
    with pytest.raises(ConfigError, match=message):
        await asyncio.to_thread(batch_requests, url, "fake", [HELLO] * 3)


async def test_the_key_is_sent() -> None:
    async with FakeEngine(api_key="sesame") as engine:
        row = await make_request(engine.url, "fake", HELLO, api_key="sesame")
        wrong = await make_request(engine.url, "fake", HELLO)
    assert row["response"]["text"] == ["hello you"]
    assert "401" in wrong["response"]["error"]


async def test_several_urls_share_the_load_and_a_dead_one_costs_nothing() -> None:
    async with FakeEngine(latency_s=0.1) as one, FakeEngine(latency_s=0.1) as two:
        urls = [one.url, NOWHERE, f"{two.url}/"]
        rows = await asyncio.gather(*(make_request(urls, "fake", HELLO, initial_delay=0.01) for _ in range(20)))
    assert all("text" in row["response"] for row in rows)
    assert min(len(one.requests), len(two.requests)) >= 8


async def test_the_same_multiplexed_model_id_goes_to_the_same_replica() -> None:
    async with FakeEngine() as one, FakeEngine() as two:
        for number in range(8):
            for _ in range(2):
                await make_request([one.url, two.url], "fake", HELLO, multiplexed_model_id=f"adapter-{number}")
    ids = [[headers["serve_multiplexed_model_id"] for headers in engine.headers] for engine in (one, two)]
    assert not set(ids[0]) & set(ids[1])
    assert len(ids[0]) + len(ids[1]) == 16
    assert all(ids)


async def test_a_function_for_the_url_is_asked_each_time_and_after_a_failure() -> None:
    async with FakeEngine() as one, FakeEngine() as two:
        answers = iter([one.url, two.url, NOWHERE, one.url, one.url, one.url])

        async def later() -> str:
            return next(answers)

        rows = [await make_request(later, "fake", HELLO, initial_delay=0.01) for _ in range(3)]
        assert (len(one.requests), len(two.requests)) == (2, 1)
        rows.append(await make_request(lambda: [two.url], "fake", HELLO))
    assert all("text" in row["response"] for row in rows)
    assert len(two.requests) == 2


async def test_a_function_for_the_url_that_fails_is_a_row() -> None:
    def fails() -> str:
        raise KeyError("no such app")

    row = await make_request(fails, "fake", HELLO)
    assert "no such app" in row["response"]["error"]
    with pytest.raises(ConfigError, match="gRPC"):
        await make_request(lambda: "host", "fake", HELLO)


async def test_an_endpoint_cache_is_told_when_to_look_anew() -> None:
    asked: list[bool] = []
    async with FakeEngine() as engine:

        async def cache(anew: bool) -> Sequence[str]:
            asked.append(anew)
            return [engine.url] if anew else [NOWHERE]

        row = await make_request(None, "fake", HELLO, endpoint_cache=cache, initial_delay=0.01)
        assert row["response"]["text"] == ["hello you"]
        assert asked == [False, True]

        async def empty(_: bool) -> Sequence[str]:
            return []

        none = await make_request("", "fake", HELLO, endpoint_cache=empty, max_retries=1)
    assert "no server" in none["response"]["error"]


async def test_requests_of_a_loop_share_their_connections() -> None:
    async with FakeEngine() as engine:
        for number in range(10):
            await make_request(engine.url, "fake", HELLO, timeout_secs=10 + number, seed=number)
    assert len(engine.clients) == 1


def test_a_batch_keeps_the_order_and_its_size() -> None:
    with FakeEngine.in_thread(latency_s=lambda body: 0.1 if "0" in body["messages"][0]["content"] else 0.01) as engine:
        rows = batch_requests(engine.url, "fake", [say(str(i)) for i in range(40)], batch_size=7, temperature=0)
    assert [row["response"]["text"] for row in rows] == [[str(i)] for i in range(40)]
    assert engine.max_in_flight == 7
    assert len(engine.clients) == 7
    assert {body["temperature"] for body in engine.requests} == {0}


def test_a_batch_without_a_size_sends_all_at_once() -> None:
    with FakeEngine.in_thread(latency_s=0.5) as engine:
        assert len(batch_requests(engine.url, "fake", [HELLO] * 200)) == 200
    assert engine.max_in_flight == 200


def test_an_empty_batch() -> None:
    assert batch_requests(NOWHERE, "fake", []) == []


async def test_a_batch_inside_of_a_running_loop() -> None:
    with FakeEngine.in_thread() as engine:
        assert batch_requests(engine.url, "fake", [say("a"), say("b")], text_response_only=True) == ["a", "b"]
        with pytest.raises(ConfigError, match="gRPC"):
            batch_requests("host", "fake", [say("a")])


def test_texts_only_are_never_missing() -> None:
    def answer(body: dict[str, Any]) -> Any:
        content = body["messages"][0]["content"]
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        return {"tool_calls": [call]} if content == "call" else content

    faults = Fault.http(400)
    with FakeEngine.in_thread(answer, fail=lambda body: faults if "bad" in str(body) else None) as engine:
        requests = [say("a"), say("call"), say("bad"), {"nothing": 1}, say("b")]
        texts = batch_requests(engine.url, "fake", requests, text_response_only=True)
    assert texts == ["a", "", "", "", "b"]


def test_an_argument_that_is_not_there_is_no_row() -> None:
    with pytest.raises(TypeError, match="temprature"):
        batch_requests(NOWHERE, "fake", [HELLO], temprature=0)


def test_progress_is_shown_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeEngine.in_thread() as engine:
        batch_requests(engine.url, "fake", [HELLO] * 3, verbose=True)
        shown = capsys.readouterr()
        batch_requests(engine.url, "fake", [HELLO] * 3)
    assert "100%" in shown.err
    assert shown.out == ""
    assert capsys.readouterr().err == ""


def test_generate_asks_the_app() -> None:
    class Cli:
        def get_app_metadata(self, app_name: str) -> dict[str, Any]:
            async def updater(_: bool = False) -> list[str]:
                return [engine.url]

            return {"model_name": f"model of {app_name}", "api_key": "key", "endpoints": {"updater": updater}}

    with FakeEngine.in_thread(api_key="key") as engine:
        assert generate(Cli(), "app", [say("a"), say("b")], {"max_tokens": 3}) == ["a", "b"]
        (row,) = generate(Cli(), "app", [say("a")], text_response_only=False)
    assert {(body["model"], body["max_tokens"]) for body in engine.requests[:2]} == {("model of app", 3)}
    assert row["response"]["text"] == ["a"]


def test_a_batch_of_less_than_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size=-1"):
        batch_requests("http://127.0.0.1:9/v1", "m", [{"prompt": "x"}], batch_size=-1)
