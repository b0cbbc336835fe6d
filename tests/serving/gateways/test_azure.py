"""Azure's wire format: https://learn.microsoft.com/azure/ai-foundry/openai/reference."""

from __future__ import annotations

from pathlib import Path

import pytest

from matrix.errors import AppError
from matrix.serving.backends import backend_of
from matrix.serving.gateways.base import Gateway
from matrix.spec.engine import AzureEngine
from matrix.spec.model import ModelSpec
from tests.serving.gateways.vendor import Reply, Vendor, chunks_of, data, refused, started

BODY = {"messages": [{"role": "user", "content": "Hi"}], "response_format": {"type": "json_schema", "json_schema": {}}}
ANSWER = {"choices": [{"message": {"content": "Hello"}, "content_filter_results": {}}], "usage": {"total_tokens": 4}}
EXPIRED = Reply({"error": {"code": "401", "message": "Access token expired."}}, 401)


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "one")
    monkeypatch.setenv("SECOND_KEY", "two")


def gateway(url: str, **engine: object) -> Gateway:
    given = {"kind": "azure", "base_url": url, "api_version": "2024-10-21", **engine}
    return backend_of(AzureEngine.model_validate(given), ModelSpec(name="my-gpt"))


async def test_the_deployment_is_in_the_path() -> None:
    steps = [{"choices": [{"index": 0, "delta": {"content": "Hi"}}]}]
    replies = Reply(ANSWER), Reply(events=data(*steps, "[DONE]")), Reply({"data": []})
    async with Vendor(*replies).listening() as vendor, started(gateway(vendor.url)) as azure:
        assert await azure.chat(BODY) == ANSWER
        assert await chunks_of(azure, BODY) == steps
        assert await azure.embed({"input": "x"}) == {"data": []}
    paths = [asked.path for asked in vendor.asked]
    assert paths == [f"/openai/deployments/my-gpt/{name}" for name in ("chat/completions",) * 2 + ("embeddings",)]
    for asked in vendor.asked:
        assert asked.query == {"api-version": "2024-10-21"}
        assert asked.headers["api-key"] == "one"
        assert "authorization" not in asked.headers
    assert vendor.asked[0].body == {"model": "my-gpt", **BODY}


async def test_keys_take_turns() -> None:
    vendor, names = Vendor(Reply(ANSWER)), ["AZURE_OPENAI_API_KEY", "SECOND_KEY"]
    async with vendor.listening(), started(gateway(vendor.url, api_key_env=names)) as azure:
        for _ in range(4):
            await azure.chat(BODY)
    assert [asked.headers["api-key"] for asked in vendor.asked] == ["one", "two"] * 2


async def test_throttling_auth_and_time_out() -> None:
    busy = {
        "error": {"code": "429", "message": "Requests have exceeded the call rate limit. Please retry after 86400 s."}
    }
    headers = {"Retry-After": "60", "retry-after-ms": "60000"}
    async with Vendor(Reply(busy, 429, headers)).listening() as vendor, started(gateway(vendor.url)) as azure:
        error = await refused(azure.chat(BODY))
        assert (error.status, error.retry_after_s) == (429, 60)
    denied = {
        "error": {"code": "401", "message": "Access denied due to invalid subscription key or wrong API endpoint."}
    }
    async with Vendor(Reply(denied, 401)).listening() as vendor, started(gateway(vendor.url)) as azure:
        error = await refused(azure.chat(BODY))
        assert (error.status, len(vendor.asked)) == (401, 1)
        assert "invalid subscription key" in error.message
    async with Vendor(Reply(hangs=True)).listening() as vendor, started(gateway(vendor.url)) as azure:
        assert (await refused(azure.chat(BODY))).status == 504


async def test_a_token_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("t-one\n")
    vendor = Vendor(Reply(ANSWER), Reply(ANSWER), EXPIRED)
    async with vendor.listening(), started(gateway(vendor.url, token_file=str(file))) as azure:
        await azure.chat(BODY)
        file.write_text("t-two, which is longer\n")
        await azure.chat(BODY)
        error = await refused(azure.chat(BODY))
        assert (error.status, len(vendor.asked)) == (401, 2 + 3)
        file.unlink()
        error = await refused(azure.chat(BODY))
        assert error.status == 401
        assert "token_file" in error.message
    assert [asked.headers["authorization"] for asked in vendor.asked[:2]] == [
        "Bearer t-one",
        "Bearer t-two, which is longer",
    ]
    assert "api-key" not in vendor.asked[0].headers
    file.write_text("")
    with pytest.raises(AppError, match="is empty"):
        gateway("http://127.0.0.1:1", token_file=str(file))
    with pytest.raises(AppError, match=r"api_key_env or engine.token_file"):
        gateway("http://127.0.0.1:1", api_key_env=None)


async def test_a_token_that_was_replaced_during_the_call(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("t-old")
    vendor = Vendor(EXPIRED, Reply(ANSWER), before=lambda: file.write_text("t-new"))
    async with vendor.listening(), started(gateway(vendor.url, token_file=str(file))) as azure:
        assert await azure.chat(BODY) == ANSWER
    assert [asked.headers["authorization"] for asked in vendor.asked] == ["Bearer t-old", "Bearer t-new"]
