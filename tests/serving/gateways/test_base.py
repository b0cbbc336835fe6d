"""Keys, limits, retries and time-outs, with a vendor of ours that fails as it is told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from matrix.errors import AppError
from matrix.serving.backend import ApiError, Json
from matrix.serving.gateways import base
from matrix.serving.gateways.base import Gateway, Key, gate_of, keys_of
from matrix.spec.engine import RemoteEngine
from matrix.spec.model import ModelSpec
from tests.serving.gateways.vendor import refused

BODY = {"messages": [{"role": "user", "content": "Hi"}]}


class VendorError(Exception):
    pass


class Listed(Gateway):
    """Gives what its list says: an answer, an error, or a pause before either."""

    vendor = "Listed"

    def __init__(self, *steps: Any, names: str = "a", **engine: Any) -> None:
        spec = RemoteEngine(**engine)
        super().__init__(
            spec, ModelSpec(name="m"), [Key(name, f"sk-secret-{name}", gate_of(spec)) for name in names.split()]
        )
        self.steps = list(steps)
        self.used: list[str] = []
        self.under_way = 0
        self.most = 0
        self.renewals = 0

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def _step(self, key: Key) -> Any:
        self.used.append(key.name)
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            if isinstance(step, float):
                await asyncio.sleep(step)
                return {"usage": {"total_tokens": 10}}
        finally:
            self.under_way -= 1
        if isinstance(step, Exception):
            raise step
        return step

    async def _chat(self, key: Key, body: Json) -> Json:
        return dict(await self._step(key))

    async def _stream(self, key: Key, body: Json) -> AsyncGenerator[Json, None]:
        for step in await self._step(key):
            if isinstance(step, Exception):
                raise step
            if isinstance(step, float):
                await asyncio.sleep(step)
            else:
                yield step

    def _refusal(self, error: Exception) -> ApiError | None:
        return ApiError(502, f"broken: {error}") if isinstance(error, VendorError) else None

    async def _renew(self, key: Key) -> bool:
        self.renewals += 1
        return self.renewals == 1


OK = {"usage": {"total_tokens": 10}}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_FIRST_PAUSE_S", 0.01)


def throttled(after_s: float | None = None) -> ApiError:
    return ApiError(429, "slow down", retry_after_s=after_s)


async def stream(gateway: Gateway, body: Json = BODY) -> list[Json]:
    return [chunk async for chunk in gateway.stream_chat(body)]


async def test_the_vendors_faults_are_tried_again() -> None:
    gateway = Listed(ApiError(500, "x"), VendorError("y"), OK)
    assert await gateway.chat(BODY) == OK
    assert len(gateway.used) == 3
    assert 'matrix_gateway_calls_total{key="a",outcome="500"} 1' in gateway.metrics()
    assert 'matrix_gateway_calls_total{key="a",outcome="ok"} 1' in gateway.metrics()
    assert 'matrix_gateway_requests{key="a"} 0' in gateway.metrics()


async def test_the_client_hears_of_the_last_fault() -> None:
    gateway = Listed(ApiError(500, "x"), ApiError(503, "y"), OK, max_attempts=2)
    error = await refused(gateway.chat(BODY))
    assert (error.status, error.message, len(gateway.used)) == (503, "y", 2)


@pytest.mark.parametrize("status", [400, 403, 404, 422])
async def test_the_requests_own_fault_is_final(status: int) -> None:
    gateway = Listed(ApiError(status, "no"), OK)
    gateway.renewals = 1
    assert (await refused(gateway.chat(BODY))).status == status
    assert len(gateway.used) == 1


async def test_an_account_without_money_is_final() -> None:
    gateway = Listed(ApiError(429, "pay", kind="insufficient_quota"), OK)
    assert (await refused(gateway.chat(BODY))).kind == "insufficient_quota"
    assert len(gateway.used) == 1


async def test_a_fault_of_ours_isnt_called_the_vendors() -> None:
    gateway = Listed(KeyError("bug"), OK)
    with pytest.raises(KeyError):
        await gateway.chat(BODY)
    assert len(gateway.used) == 1
    assert gateway.keys[0].load == 0
    assert gateway.keys[0].gate.limit.in_flight == 0


async def test_a_short_retry_after_is_waited_for() -> None:
    gateway = Listed(throttled(0.3), OK)
    began = time.monotonic()
    assert await gateway.chat(BODY) == OK
    assert time.monotonic() - began >= 0.3


async def test_a_long_retry_after_reaches_the_client_and_those_after_it() -> None:
    gateway = Listed(throttled(100), OK)
    error = await refused(gateway.chat(BODY))
    assert (error.status, error.retry_after_s) == (429, 100)
    error = await refused(gateway.chat(BODY))
    assert error.status == 429
    assert error.retry_after_s == pytest.approx(100, abs=1)
    assert len(gateway.used) == 1, "the second wasn't sent"


async def test_another_key_helps_at_once() -> None:
    gateway = Listed(throttled(100), OK, names="a b")
    assert await gateway.chat(BODY) == OK
    assert await gateway.chat(BODY) == OK
    assert gateway.used == ["a", "b", "b"]


async def test_keys_take_turns_the_least_loaded_first() -> None:
    gateway = Listed(OK, names="a b c")
    for _ in range(6):
        await gateway.chat(BODY)
    assert sorted(gateway.used[:3]) == ["a", "b", "c"]
    assert gateway.used[3:] == gateway.used[:3]

    gateway = Listed(1.0, 0.05, 0.05, 0.05, names="a b")
    slow = asyncio.create_task(gateway.chat(BODY))
    await asyncio.sleep(0.01)
    for _ in range(3):
        await gateway.chat(BODY)
    assert gateway.used == ["a", "b", "b", "b"]
    slow.cancel()


async def test_the_limit_of_each_key() -> None:
    gateway = Listed(OK, names="a b", requests_per_minute=600)
    began = time.monotonic()
    await asyncio.gather(*(gateway.chat(BODY) for _ in range(30)))
    # Each key lets 10 through at once and then one in 100 ms.
    assert 0.45 <= time.monotonic() - began < 2
    assert gateway.used.count("a") == gateway.used.count("b") == 15


async def test_tokens_are_corrected_by_usage() -> None:
    body = {**BODY, "max_tokens": 1000}
    gateway = Listed(OK, tokens_per_minute=60_000)
    began = time.monotonic()
    for _ in range(20):
        await gateway.chat(body)
    assert time.monotonic() - began < 5, "20 x 10 tokens, not 20 x 1000"
    gateway = Listed({"usage": {"total_tokens": 1500}}, tokens_per_minute=60_000)
    began = time.monotonic()
    for _ in range(2):
        await gateway.chat(body)
    assert time.monotonic() - began > 0.4, "500 more than estimated"


async def test_a_wait_that_is_too_long_is_a_429(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "LONGEST_WAIT_S", 0.2)
    gateway = Listed(OK, requests_per_minute=60)
    await gateway.chat(BODY)
    error = await refused(gateway.chat(BODY))
    assert (error.status, error.retry_after_s, len(gateway.used)) == (429, 0.2, 1)
    assert gateway.keys[0].load == 0


@pytest.mark.parametrize("streams", [False, True])
async def test_a_time_out_is_a_504_and_final(streams: bool) -> None:
    gateway = Listed(30.0, timeout_s=0.1)
    error = await refused(stream(gateway) if streams else gateway.chat(BODY))
    assert (error.status, len(gateway.used)) == (504, 1)


async def test_a_refused_credential_is_renewed_once() -> None:
    gateway = Listed(ApiError(401, "expired"), OK)
    assert await gateway.chat(BODY) == OK
    gateway = Listed(ApiError(401, "expired"))
    assert (await refused(gateway.chat(BODY))).status == 401
    assert len(gateway.used) == 2


async def test_no_key_in_an_error() -> None:
    gateway = Listed(VendorError("bad key sk-secret-a, not sk-secret-b"), names="a b", max_attempts=1)
    with pytest.raises(ApiError) as caught:
        await gateway.chat(BODY)
    assert caught.value.message == "broken: bad key ***, not ***"
    assert "secret" not in str(caught.value.body())
    assert "secret" not in str(caught.value)
    assert "secret" not in "".join(map(str, caught.value.args))
    assert caught.value.__suppress_context__


def test_a_key_that_isnt_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THERE", "x")
    with pytest.raises(AppError, match="NOT_THERE: no such environment variable"):
        keys_of(RemoteEngine(), ["THERE", "NOT_THERE"])


async def test_a_stream_is_tried_again_before_its_first_chunk() -> None:
    chunk = {"choices": [{"delta": {"content": "x"}}]}
    gateway = Listed([VendorError("early")], [chunk, chunk])
    assert await stream(gateway) == [chunk, chunk]
    gateway = Listed([chunk, VendorError("late")], [chunk])
    chunks = gateway.stream_chat(BODY)
    assert await anext(chunks) == chunk
    assert "late" in (await refused(anext(chunks))).message
    assert len(gateway.used) == 1


async def test_usage_of_a_stream_is_only_for_those_who_ask() -> None:
    text, last = {"choices": [{"delta": {}}]}, {"choices": [], "usage": {"total_tokens": 3}}
    assert await stream(Listed([text, last])) == [text]
    assert await stream(Listed([{**text, "usage": None}, last])) == [text]
    asked = {**BODY, "stream_options": {"include_usage": True}}
    assert await stream(Listed([text, last]), asked) == [text, last]


async def test_a_reader_that_goes_gives_its_turn_back() -> None:
    gateway = Listed([{"choices": [1]}, 30.0])
    chunks = gateway.stream_chat(BODY)
    await anext(chunks)
    assert gateway.keys[0].load == 1
    await chunks.aclose()  # type: ignore[attr-defined]
    assert gateway.keys[0].load == gateway.keys[0].gate.limit.in_flight == 0

    task = asyncio.create_task(Listed.chat(waiting := Listed(30.0), BODY))
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert waiting.keys[0].load == waiting.keys[0].gate.limit.in_flight == 0


async def test_what_a_vendor_doesnt_have() -> None:
    gateway = Listed(OK)
    for call in (gateway.complete(BODY), gateway.embed(BODY), anext(gateway.stream_complete(BODY))):
        error = await refused(call)
        assert error.status == 404
        assert "Listed has no" in error.message


async def test_several_answers_of_a_vendor_that_gives_one() -> None:
    answer = {"choices": [{"index": 0}], "usage": {"total_tokens": 4, "cost": 0.5, "details": {"cached_tokens": 1}}}
    gateway = Listed(answer, answer, answer, ApiError(400, "no"))
    gateway.answers_n = False
    told = await gateway.chat({**BODY, "n": 3})
    assert [one["index"] for one in told["choices"]] == [0, 1, 2]
    assert told["usage"] == {"total_tokens": 12, "cost": 1.5, "details": {"cached_tokens": 3}}
    assert (await refused(gateway.chat({**BODY, "n": 2}))).status == 400
    assert (await refused(stream(gateway, {**BODY, "n": 2}))).status == 400
