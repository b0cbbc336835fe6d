from __future__ import annotations

import json

import pytest

from tests.fake_engine import FakeEngine
from tests.serving.door.doors import AUTH, CHAT, CONTROL, KEY, Client, StreamingServer, route


async def test_an_app_is_found_by_its_name_its_model_and_its_address(client: Client) -> None:
    async with FakeEngine(api_key=KEY) as a, FakeEngine(api_key=KEY) as b:
        await client.tell(route("a", a.url, model="org/m", models=["lora"]), route("b", b.url))
        for model in ("a", "org/m", "lora"):
            assert (await client.chat(model)).status == 200
        assert (await client.chat("org/m", "/a/v1/chat/completions")).status == 200
        assert (await client.chat("a", "/a/v1/chat/completions")).status == 200
        answer = await client.chat("b")
        assert answer.replica == f"127.0.0.1:{b.port}"
        assert [body["model"] for body in a.requests] == ["org/m", "org/m", "lora", "org/m", "org/m"]
        assert [body["model"] for body in b.requests] == ["model-b"]


async def test_a_body_reaches_an_apps_own_address_as_it_is(client: Client) -> None:
    async with FakeEngine() as engine:
        await client.tell(route("a", engine.url, model="m"))
        # Neither the space nor the number past 64 bits would survive being parsed and written again.
        body = b'{ "model": "m", "seed": 123456789012345678901234567890, "messages": [{"content": "a"}]}'
        async with client.session.post(f"{client.url}/a/v1/chat/completions", data=body, headers=AUTH) as reply:
            assert reply.status == 200
        assert engine.requests[0]["seed"] == 123456789012345678901234567890
        assert engine.headers[0]["Content-Length"] == str(len(body))


async def test_the_app_that_was_there_first_keeps_its_models_name(client: Client) -> None:
    async with FakeEngine() as first, FakeEngine() as second:
        await client.tell(route("z", first.url, model="m"))
        await client.tell(route("a", second.url, model="m"), route("z", first.url, model="m"))
        assert (await client.chat("m")).replica == f"127.0.0.1:{first.port}"
        listed = (await client.get("/v1/models")).content["data"]
        assert [(model["id"], model["root"]) for model in listed] == [("m", "m"), ("a", "m")]


async def test_an_unknown_model_or_app_is_told_which_there_are(client: Client) -> None:
    await client.tell(route("teacher", model="org/big"))
    answer = await client.chat("techer")
    assert answer.status == 404
    assert answer.message == "there is no model 'techer'; there is teacher, org/big"
    answer = await client.chat("x", "/studnt/v1/chat/completions")
    assert answer.status == 404
    assert answer.message == "there is no app 'studnt'; there is teacher"


@pytest.mark.parametrize("body", [b"", b"[1]", b"{", b'{"model": 5}'])
async def test_a_request_without_a_model_is_refused_when_there_are_several(client: Client, body: bytes) -> None:
    await client.tell(route("a"), route("b"))
    async with client.session.post(f"{client.url}/v1/completions", data=body, headers=AUTH) as reply:
        assert reply.status == 400
        assert (await reply.json())["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer other"}, {"Authorization": KEY}])
@pytest.mark.parametrize("path", ["/v1/models", "/a/v1/models", "/metrics", "/nothing/at/all"])
async def test_without_the_key_nobody_comes_in(client: Client, path: str, headers: dict[str, str]) -> None:
    await client.tell(route("a"))
    answer = await client.get(path, headers)
    assert answer.status == 401
    assert "Bearer" in answer.message
    assert answer.headers["WWW-Authenticate"] == "Bearer"


async def test_health_needs_no_key_and_names_no_app(client: Client) -> None:
    async with FakeEngine() as engine:
        await client.tell(route("up", engine.url), route("down"), route("asleep", min_replicas=0))
        statuses = [(await client.get(f"{name}/health", {})).status for name in ("", "/up", "/down", "/asleep")]
        assert statuses == [200, 200, 503, 200]
        assert (await client.get("/x/health", {})).message == "there is no app 'x'"


async def test_replicas_get_the_key_and_the_clients_other_headers(client: Client) -> None:
    async with FakeEngine(api_key=KEY) as engine:
        await client.tell(route("a", engine.url))
        headers = {"X-Trace": "7", "Proxy-Authorization": "secret", "User-Agent": "mine"}
        assert (await client.chat("a", **headers)).status == 200
        seen = engine.headers[0]
        assert (seen["X-Trace"], seen["User-Agent"]) == ("7", "mine")
        assert "Proxy-Authorization" not in seen
        assert seen["Host"] == f"127.0.0.1:{engine.port}"
        assert len(engine.headers[0].getall("Content-Type")) == 1  # type: ignore[attr-defined]


async def test_other_paths_of_an_app_pass_with_their_query(client: Client) -> None:
    async with FakeEngine(model="m") as engine:
        await client.tell(route("a", engine.url))
        assert (await client.get("/a/v1/models?x=%2F")).content["data"][0]["id"] == "m"
        assert (await client.get("/a/nothing")).status == 404
        assert (await client.get("/v1/models/m")).status == 404


async def test_a_large_body_passes(client: Client) -> None:
    server = StreamingServer()
    async with server.serve() as url:
        await client.tell(route("a", url))
        body = json.dumps({"model": "a", "prompt": "x" * (9 << 20)}).encode()
        async with client.session.post(f"{client.url}/a/v1/size", data=body, headers=AUTH) as reply:
            # The app's name has become the model's.
            assert (await reply.json())["bytes"] >= 9 << 20


async def test_a_body_past_the_limit_is_refused_before_it_is_read(client: Client) -> None:
    await client.tell(route("a"))
    headers = AUTH | {"Content-Length": str(2 << 30), "Expect": "100-continue"}
    async with client.session.post(f"{client.url}/a/v1/size", data=b"", headers=headers) as reply:
        assert reply.status == 413


async def test_only_the_control_key_tells_of_apps(client: Client) -> None:
    for headers in ({}, AUTH):
        async with client.session.put(f"{client.url}/control/routes", json={}, headers=headers) as reply:
            assert reply.status == 401
    async with client.session.get(f"{client.url}/control/routes", headers=CONTROL) as reply:
        assert reply.status == 404


@pytest.mark.parametrize(
    "apps", [[route("v1")], [route("metrics")], [route("a"), route("a")], [route("a/b")], [{"nam": "a"}]]
)
async def test_routes_that_make_no_sense_change_nothing(client: Client, apps: list[dict[str, object]]) -> None:
    await client.tell(route("kept"))
    async with client.session.put(f"{client.url}/control/routes", json={"apps": apps}, headers=CONTROL) as reply:
        assert reply.status == 400
    assert (await client.get("/v1/models")).content["data"][0]["app"] == "kept"


async def test_openai_client(client: Client) -> None:
    from openai import AsyncOpenAI, NotFoundError

    async with FakeEngine(api_key=KEY) as engine:
        await client.tell(route("a", engine.url))
        async with AsyncOpenAI(base_url=f"{client.url}/v1", api_key=KEY) as openai:
            answer = await openai.chat.completions.create(model="a", messages=CHAT["messages"])  # type: ignore[call-overload]
            assert answer.choices[0].message.content == "hello"
            assert [model.id async for model in openai.models.list()] == ["model-a"]
            with pytest.raises(NotFoundError, match="there is no model 'b'"):
                await openai.completions.create(model="b", prompt="x")
        async with AsyncOpenAI(base_url=f"{client.url}/a/v1", api_key=KEY) as openai:
            text = await openai.completions.create(model="model-a", prompt="x")
            assert text.choices[0].text == "x"
