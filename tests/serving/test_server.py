"""The HTTP API of our own servers, as OpenAI's SDK and plain HTTP clients see it."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator

import aiohttp
import openai
import pytest

from tests.serving.server_process import KEY, Server, command, environment, serving

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "minLength": 3}, "degrees": {"type": "integer", "minimum": 5}},
    "required": ["city", "degrees"],
}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}]
ASK = {"model": "sim", "messages": [{"role": "user", "content": "Hello?"}]}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url, api_key=KEY, max_retries=0)


@pytest.fixture
async def http(server: Server) -> AsyncIterator[aiohttp.ClientSession]:
    base = server.url.removesuffix("v1")
    async with aiohttp.ClientSession(base, headers={"Authorization": f"Bearer {KEY}"}) as session:
        yield session


async def metrics(session: aiohttp.ClientSession) -> dict[str, float]:
    async with session.get("/metrics") as answer:
        assert answer.status == 200
        lines = (await answer.text()).splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**ASK, n=2)
    assert [len(choice.message.content.split()) for choice in answer.choices] == [8, 8]
    assert {choice.finish_reason for choice in answer.choices} == {"stop"}
    assert answer.usage is not None
    # Two tokens of text, four around the message.
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (6, 16, 22)


def test_chat_in_a_stream(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert len(text.split()) == 8
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 8


def test_usage_in_a_stream_only_when_asked(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(**ASK, stream=True))
    assert all(chunk.choices for chunk in chunks)
    assert all(chunk.usage is None for chunk in chunks)


def test_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="sim", prompt=["one", "two"], max_tokens=3, logprobs=2)
    assert [len(choice.text.split()) for choice in answer.choices] == [3, 3]
    assert [choice.finish_reason for choice in answer.choices] == ["length", "length"]
    logprobs = answer.choices[1].logprobs
    assert "".join(logprobs.tokens) == answer.choices[1].text
    assert logprobs.text_offset == [0, len(logprobs.tokens[0]), len(logprobs.tokens[0]) + len(logprobs.tokens[1])]
    assert all(len(top) == 2 for top in logprobs.top_logprobs)
    streamed = client.completions.create(model="sim", prompt="one", stream=True)
    assert len("".join(chunk.choices[0].text for chunk in streamed).split()) == 8


def test_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**ASK, logprobs=True, top_logprobs=2)
    tokens = answer.choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == answer.choices[0].message.content
    assert all(token.top_logprobs[0].logprob == token.logprob <= 0 for token in tokens)
    assert all(token.top_logprobs[1].logprob < token.logprob for token in tokens)


@pytest.mark.parametrize(
    ("choice", "finish"), [("required", "tool_calls"), ({"type": "function", "function": {"name": "weather"}}, "stop")]
)
def test_tools(client: openai.OpenAI, choice: object, finish: str) -> None:
    answer = client.chat.completions.create(**ASK, tools=TOOLS, tool_choice=choice)
    call = answer.choices[0].message.tool_calls[0]
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "aaa", "degrees": 5})
    assert answer.choices[0].finish_reason == finish


def test_tools_in_a_stream(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(**ASK, tools=TOOLS, tool_choice="required") as stream:
        answer = stream.get_final_completion()
    call = answer.choices[0].message.tool_calls[0]
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "aaa", "degrees": 5})


def test_tools_that_nothing_forces_are_not_called(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**ASK, tools=TOOLS)
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].message.content


def test_json_schema(client: openai.OpenAI) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "report", "schema": SCHEMA}}
    answer = client.chat.completions.create(**ASK, response_format=wanted)
    assert json.loads(answer.choices[0].message.content) == {"city": "aaa", "degrees": 5}


def test_embeddings(client: openai.OpenAI) -> None:
    # The SDK asks for base64 unless it is told otherwise.
    packed = client.embeddings.create(model="sim", input=["one", "two", "one"])
    plain = client.embeddings.create(model="sim", input="one", encoding_format="float", dimensions=384)
    one, two, again = (item.embedding for item in packed.data)
    assert one == again != two
    assert one == pytest.approx(plain.data[0].embedding, abs=1e-6)
    assert sum(number * number for number in one) == pytest.approx(1, abs=1e-5)
    assert len(client.embeddings.create(model="sim", input="one", dimensions=7).data[0].embedding) == 7


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["sim"]


@pytest.mark.parametrize("key", ["wrong", KEY + "x", "ä"])
async def test_a_wrong_key(server: Server, key: str) -> None:
    async with aiohttp.ClientSession(server.url.removesuffix("v1")) as session:
        for method, path in [("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/metrics")]:
            async with session.request(method, path, json=ASK, headers={"Authorization": f"Bearer {key}"}) as answer:
                assert answer.status == 401
                assert (await answer.json())["error"]["code"] == 401
        async with session.get("/v1/models") as answer:
            assert answer.status == 401
        async with session.get("/health") as answer:
            assert answer.status == 200


def test_the_sdk_knows_the_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    with pytest.raises(openai.NotFoundError, match="The model `other` does not exist"):
        client.chat.completions.create(**{**ASK, "model": "other"})
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        client.chat.completions.create(**ASK, max_tokens=0)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/chat/completions", '{"messages": [', 400),
        ("POST", "/v1/chat/completions", "[]", 400),
        ("POST", "/v1/chat/completions", '{"messages": []}', 400),
        ("POST", "/v1/completions", '{"prompt": 3}', 400),
        ("GET", "/v1/chat/completions", "", 405),
        ("POST", "/v1/models", "{}", 405),
        ("GET", "/v2/models", "", 404),
    ],
)
async def test_what_is_no_request(http: aiohttp.ClientSession, method: str, path: str, body: str, status: int) -> None:
    async with http.request(method, path, data=body) as answer:
        assert answer.status == status
        assert (await answer.json())["error"]["message"]


async def test_an_exception_is_not_shown(http: aiohttp.ClientSession) -> None:
    # The message is a number where the simulated engine looks for a mapping: a bug, as it were.
    async with http.post("/v1/chat/completions", json={**ASK, "response_format": "text"}) as answer:
        assert answer.status == 500
        told = await answer.text()
    assert "Traceback" not in told
    assert "AttributeError" not in told


async def test_a_large_body_in_pieces(http: aiohttp.ClientSession) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"messages": [{"role": "user", "content": "'
        for _ in range(100):
            yield b"a" * 40_000
        yield b'"}]}'

    async with http.post("/v1/chat/completions", data=pieces()) as answer:
        assert (await answer.json())["usage"]["prompt_tokens"] == 1_000_004


def test_429_says_when_to_come_back() -> None:
    with serving(requests_per_minute=2) as limited:
        client = openai.OpenAI(base_url=limited.url, api_key=KEY, max_retries=0)
        client.chat.completions.create(**ASK)
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(**ASK)
    assert 29 <= int(caught.value.response.headers["retry-after"]) <= 30


async def test_an_error_of_the_engine_before_a_stream_has_its_status() -> None:
    with serving(error_rate=1) as broken:
        client = openai.AsyncOpenAI(base_url=broken.url, api_key=KEY, max_retries=0)
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError):
                await client.chat.completions.create(**ASK, stream=stream)


@pytest.mark.parametrize("stream", [False, True])
async def test_who_goes_away_makes_room(stream: bool) -> None:
    with serving(max_running=1, first_token_s=0, token_s=30, output_tokens=3) as slow:
        async with aiohttp.ClientSession(
            slow.url.removesuffix("v1"), headers={"Authorization": f"Bearer {KEY}"}
        ) as http:
            # One runs, one waits.
            asked = [
                asyncio.create_task(http.post("/v1/chat/completions", json={**ASK, "stream": stream})) for _ in range(2)
            ]
            async with asyncio.timeout(5):
                while (await metrics(http))["matrix_requests_waiting"] < 1:
                    await asyncio.sleep(0.02)
            assert (await metrics(http))["matrix_requests_running"] == 1
            for task in asked:
                task.cancel()
            for answer in await asyncio.gather(*asked, return_exceptions=True):
                if isinstance(answer, aiohttp.ClientResponse):
                    answer.close()
            async with asyncio.timeout(5):
                while (found := await metrics(http)).get('matrix_requests_total{status="499"}') != 2:
                    await asyncio.sleep(0.02)
            assert (found["matrix_requests_running"], found["matrix_requests_waiting"]) == (0, 0)


async def test_metrics() -> None:
    with serving(output_tokens=5, kv_cache_tokens=1000, token_s=0.005) as counted:
        async with aiohttp.ClientSession(
            counted.url.removesuffix("v1"), headers={"Authorization": f"Bearer {KEY}"}
        ) as http:
            for extra in ({}, {"stream": True}, {"model": "other"}):
                async with http.post("/v1/chat/completions", json={**ASK, **extra}) as answer:
                    await answer.read()
            found = await metrics(http)
            async with http.get("/metrics") as answer:
                text = await answer.text()
    assert found['matrix_requests_total{status="200"}'] == 2
    assert found['matrix_requests_total{status="404"}'] == 1
    assert found["matrix_prompt_tokens_total"] == 12
    assert found["matrix_generation_tokens_total"] == 10
    assert found["matrix_request_seconds_count"] == 2
    assert found['matrix_request_seconds_bucket{le="+Inf"}'] == 2
    assert found['matrix_request_seconds_bucket{le="0.01"}'] == 0
    assert 0.04 <= found["matrix_request_seconds_sum"] < 1
    assert found["matrix_time_to_first_token_seconds_count"] == 1
    assert found["matrix_kv_cache_usage"] == 0
    named = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
    assert len(named) == len(set(named)) == 8


def test_a_signal_lets_requests_finish() -> None:
    with serving(first_token_s=1) as slow:
        asked = subprocess.Popen(
            ["curl", "-s", f"{slow.url}/chat/completions", "-H", f"Authorization: Bearer {KEY}", "-d", json.dumps(ASK)],
            stdout=subprocess.PIPE,
        )
        time.sleep(0.4)
        slow.process.send_signal(signal.SIGTERM)
        answer, _ = asked.communicate(timeout=10)
        assert json.loads(answer)["usage"]["completion_tokens"] == 8
        assert slow.process.wait(10) == 0


def test_a_signal_ends_what_hangs() -> None:
    with serving(hang_rate=1, drain_timeout_s=1) as stuck:
        asked = subprocess.Popen(
            [
                "curl",
                "-s",
                f"{stuck.url}/chat/completions",
                "-H",
                f"Authorization: Bearer {KEY}",
                "-d",
                json.dumps(ASK),
            ],
            stdout=subprocess.PIPE,
        )
        time.sleep(0.4)
        stuck.process.send_signal(signal.SIGTERM)
        answer, _ = asked.communicate(timeout=10)
        assert json.loads(answer)["error"]["code"] == 503
        assert stuck.process.wait(10) == 0


SIMULATED = {"engine": {"kind": "simulated"}, "model": {"name": "sim"}}


@pytest.mark.parametrize(
    ("what", "key", "arguments", "told"),
    [
        (None, KEY, [], "MATRIX_SERVING: should hold JSON"),
        ("{", KEY, [], "Invalid JSON"),
        ({**SIMULATED, "engine": {"kind": "simulated", "token_s": -1}}, KEY, [], "engine.simulated.token_s"),
        ({**SIMULATED, "engine": {"kind": "vllm"}}, KEY, [], "engine.kind=vllm"),
        ({**SIMULATED, "engine": {"kind": "simulated", "outputs": "none.jsonl"}}, KEY, [], "none.jsonl"),
        (SIMULATED, None, ["--host", "0.0.0.0"], "MATRIX_API_KEY"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(what: object, key: str | None, arguments: list[str], told: str) -> None:
    ended = subprocess.run(
        command(*arguments), env=environment(what, key), capture_output=True, text=True, timeout=30, check=False
    )
    assert ended.returncode in {1, 2}
    assert told in ended.stderr
    assert ended.stderr.count("\n") == 1
