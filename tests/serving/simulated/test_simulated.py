"""The simulated engine: what is drawn, what it does with time, queue, limits and failures.

On a virtual clock (`conftest.py`), so that latencies are exact and cost no time.
"""

from __future__ import annotations

import asyncio
import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from matrix.errors import DataError
from matrix.serving.backend import ApiError, Json
from matrix.serving.simulated.backend import SimulatedBackend
from matrix.spec import ModelSpec
from matrix.spec.engine import SimulatedEngine

QUICK: dict[str, Any] = {"kind": "simulated", "first_token_s": 0, "token_s": 0, "output_tokens": 4}


def backend(context_length: int | None = None, **engine: Any) -> SimulatedBackend:
    model = ModelSpec(name="sim", context_length=context_length)
    return SimulatedBackend(SimulatedEngine.model_validate({**QUICK, **engine}), model)


def ask(content: str = "", **more: Any) -> Json:
    return {"messages": [{"role": "user", "content": content}], **more}


def text(answer: Json) -> str:
    return str(answer["choices"][0]["message"]["content"])


async def stream(of: SimulatedBackend, body: Json) -> list[tuple[float, Json]]:
    """All chunks, each with the seconds that had passed."""
    began = asyncio.get_running_loop().time()
    return [(asyncio.get_running_loop().time() - began, chunk) async for chunk in of.stream_chat(body)]


async def outcome(of: SimulatedBackend, body: Json) -> tuple[str, float]:
    """Text or status, and the seconds that it took."""
    began = asyncio.get_running_loop().time()
    try:
        told = text(await of.chat(body))
    except ApiError as error:
        told = str(error.status)
    return told, asyncio.get_running_loop().time() - began


VARIED: dict[str, Any] = {
    "output_tokens": {"kind": "lognormal", "mean": 20, "std": 10},
    "first_token_s": {"kind": "gamma", "mean": 0.02, "std": 0.02},
    "error_rate": 0.2,
}


async def test_a_seed_gives_the_same_answers_latencies_and_failures() -> None:
    async def all_of(seed: int) -> list[tuple[str, float]]:
        one = backend(seed=seed, **VARIED)
        return await asyncio.gather(*(outcome(one, ask()) for _ in range(40)))

    first, again, other = await all_of(1), await all_of(1), await all_of(2)
    assert [told for told, _ in first] == [told for told, _ in again]
    assert [told for told, _ in first] != [told for told, _ in other]
    assert 0 < [told for told, _ in first].count("500") < 20
    assert [seconds for _, seconds in first] == pytest.approx([seconds for _, seconds in again], abs=0.05)


async def test_a_stream_has_the_answer_of_a_whole_request() -> None:
    whole = text(await backend(seed=3).chat(ask()))
    chunks = await stream(backend(seed=3), ask())
    assert "".join(chunk["choices"][0]["delta"]["content"] for _, chunk in chunks) == whole


async def test_failures_change_nothing_for_the_others() -> None:
    sound, broken = backend(seed=1, **{**VARIED, "error_rate": 0}), backend(seed=1, **VARIED)
    expected = [await outcome(sound, ask()) for _ in range(30)]
    got = [await outcome(broken, ask()) for _ in range(30)]
    assert all(told in {"500", right} for (right, _), (told, _) in zip(expected, got, strict=True))


@pytest.mark.parametrize("kind", ["constant", "uniform", "normal", "lognormal", "exponential", "gamma"])
async def test_lengths_have_the_mean_of_their_distribution(kind: str) -> None:
    one = backend(output_tokens={"kind": kind, "mean": 100, "std": 20})
    lengths = [(await one.chat(ask()))["usage"]["completion_tokens"] for _ in range(1500)]
    assert statistics.fmean(lengths) == pytest.approx(100, rel=0.1)
    spread = {"constant": 0, "exponential": 100}.get(kind, 20)
    assert statistics.pstdev(lengths) == pytest.approx(spread, rel=0.15, abs=0.5)


async def test_lengths_stay_between_min_and_max() -> None:
    one = backend(output_tokens={"kind": "exponential", "mean": 20, "min": 10, "max": 30})
    lengths = [(await one.chat(ask()))["usage"]["completion_tokens"] for _ in range(300)]
    assert (min(lengths), max(lengths)) == (10, 30)


async def test_a_whole_answer_takes_first_token_and_all_others() -> None:
    one = backend(first_token_s=0.1, token_s=0.01, output_tokens=11)
    _, seconds = await outcome(one, ask(n=3))
    assert seconds == pytest.approx(0.2)


async def test_a_stream_comes_token_by_token() -> None:
    chunks = await stream(backend(first_token_s=0.1, token_s=0.03, output_tokens=6), ask())
    times = [seconds for seconds, chunk in chunks if chunk["choices"][0]["delta"].get("content")]
    assert len(times) == 6
    assert [seconds - times[0] for seconds in times] == pytest.approx([0.03 * number for number in range(6)], abs=0.02)
    assert chunks[0][0] == pytest.approx(0.1)
    assert chunks[-1][1]["choices"][0]["finish_reason"] == "stop"


async def test_many_streams_have_larger_chunks_and_the_same_end() -> None:
    one = backend(first_token_s=0.1, token_s=0.002, output_tokens=150)
    streams = await asyncio.gather(*(stream(one, ask()) for _ in range(500)))
    chunks = [len(chunks) for chunks in streams]
    assert statistics.fmean(chunks) < 40
    for got in streams[:: len(streams) // 10]:
        assert sum(len(chunk["choices"][0]["delta"]["content"].split()) for _, chunk in got) == 150
        assert got[-1][0] == pytest.approx(0.1 + 149 * 0.002, abs=1e-3)


async def test_limits_and_stops() -> None:
    long = backend(output_tokens=50)
    for limit in ({"max_tokens": 7}, {"max_completion_tokens": 7, "max_tokens": 9}):
        answer = await long.chat(ask(**limit))
        assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (7, "length")
    exact = await backend().chat(ask(max_tokens=4))
    assert exact["choices"][0]["finish_reason"] == "stop"
    whole = text(await backend(output_tokens=50).chat(ask()))
    word = whole.split()[9]
    cut = await backend(output_tokens=50).chat(ask(stop=[word]))
    assert text(cut) == whole[: whole.find(word)]
    assert cut["choices"][0]["finish_reason"] == "stop"


async def test_the_context_ends_an_answer_or_refuses_a_prompt() -> None:
    small = backend(context_length=20, output_tokens=50)
    answer = await small.chat(ask("a" * 40))
    # Ten tokens of text, four around the message.
    assert answer["usage"] == {"prompt_tokens": 14, "completion_tokens": 6, "total_tokens": 20}
    assert answer["choices"][0]["finish_reason"] == "length"
    with pytest.raises(ApiError, match="maximum context length is 20 tokens") as caught:
        await small.chat(ask("a" * 80))
    assert caught.value.status == 400


async def test_answers_are_replayed_one_after_another(tmp_path: Path) -> None:
    file = tmp_path / "outputs.jsonl"
    file.write_text('{"text": "The answer\\n\\nis  4."}\n{"output_tokens": 2}\n{"text": ""}\n')
    one = backend(outputs=str(file), output_tokens=99)
    answers = [await one.chat(ask()) for _ in range(4)]
    assert [answer["usage"]["completion_tokens"] for answer in answers] == [4, 2, 0, 4]
    assert text(answers[0]) == text(answers[3]) == "The answer\n\nis  4."
    assert text(answers[2]) == ""
    await stream(one, ask())
    chunks = await stream(one, ask())
    assert [chunk["choices"][0]["finish_reason"] for _, chunk in chunks].count("stop") == 1


@pytest.mark.parametrize("line", ["", "{}", '{"text": 4}', '{"output_tokens": -1}', "{"])
def test_a_file_that_cannot_be_replayed(tmp_path: Path, line: str) -> None:
    file = tmp_path / "outputs.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(DataError, match=r"outputs\.jsonl"):
        backend(outputs=str(file))


async def test_errors_come_when_the_first_token_would() -> None:
    one = backend(first_token_s=0.05, token_s=1, error_rate=1)
    told, seconds = await outcome(one, ask())
    assert told == "500"
    assert 0.045 <= seconds < 0.2
    with pytest.raises(ApiError, match="simulated"):
        await anext(one.stream_chat(ask()))


async def test_what_hangs_holds_its_place_until_its_client_goes() -> None:
    one = backend(hang_rate=1, max_running=1, kv_cache_tokens=100)
    hung = asyncio.create_task(one.chat(ask("a" * 40)))
    queued = asyncio.create_task(one.chat(ask()))
    await asyncio.sleep(0.05)
    assert not hung.done()
    assert waiting(one) == 1
    assert "matrix_kv_cache_usage 0.18\n" in one.metrics()
    for task in (queued, hung):
        task.cancel()
    await asyncio.gather(hung, queued, return_exceptions=True)
    assert waiting(one) == 0
    assert "matrix_kv_cache_usage 0.0\n" in one.metrics()


@pytest.mark.parametrize(("field", "told"), [("error_rate", "500"), ("hang_rate", "TimeoutError")])
async def test_rates_of_failures(field: str, told: str) -> None:
    one = backend(**{field: 0.25})

    async def outcome_of_one() -> str:
        try:
            async with asyncio.timeout(0.5):
                return (await outcome(one, ask()))[0]
        except TimeoutError:
            return "TimeoutError"

    found = await asyncio.gather(*(outcome_of_one() for _ in range(1000)))
    assert found.count(told) == pytest.approx(250, abs=50)


def waiting(one: SimulatedBackend) -> int:
    line = next(line for line in one.metrics().splitlines() if line.startswith("matrix_requests_waiting "))
    return int(line.split()[1])


async def test_max_running_queues_in_order() -> None:
    one = backend(first_token_s=0.05, max_running=2)
    ended: list[int] = []

    async def chat(number: int) -> None:
        await one.chat(ask())
        ended.append(number)

    began = asyncio.get_running_loop().time()
    async with asyncio.TaskGroup() as group:
        for number in range(8):
            group.create_task(chat(number))
        await asyncio.sleep(0.02)
        assert waiting(one) == 6
    assert ended == list(range(8))
    assert 0.19 <= asyncio.get_running_loop().time() - began < 0.4


async def test_the_kv_cache_queues_and_nothing_overtakes() -> None:
    # A request of this prompt takes 14 tokens and 4 for its answer: two fit.
    one = backend(first_token_s=0.05, kv_cache_tokens=40)
    began = asyncio.get_running_loop().time()
    long, short = ask("a" * 40), ask()
    times = await asyncio.gather(*(outcome(one, body) for body in (long, long, long, short)))
    assert [round(seconds / 0.05) for _, seconds in times] == [1, 1, 2, 2]
    assert asyncio.get_running_loop().time() - began < 0.2
    with pytest.raises(ApiError, match="KV cache of 40") as caught:
        await one.chat(ask("a" * 200))
    assert caught.value.status == 400


async def test_who_leaves_the_queue_lets_the_next_in() -> None:
    one = backend(first_token_s=0.2, kv_cache_tokens=40)
    running = asyncio.create_task(one.chat(ask("a" * 40)))
    await asyncio.sleep(0.01)
    large = asyncio.create_task(one.chat(ask("a" * 100)))
    await asyncio.sleep(0.01)
    small = asyncio.create_task(outcome(one, ask("a")))
    await asyncio.sleep(0.01)
    assert waiting(one) == 2
    large.cancel()
    _, seconds = await small
    assert seconds < 0.3
    await running


async def test_rate_limits() -> None:
    one = backend(requests_per_minute=600)
    found = [(await outcome(one, ask()))[0] for _ in range(30)]
    # One second's worth.
    assert found.count("429") == pytest.approx(20, abs=1)
    with pytest.raises(ApiError) as caught:
        await one.chat(ask())
    assert caught.value.kind == "rate_limit"
    assert 0 < caught.value.retry_after_s <= 0.1
    await asyncio.sleep(caught.value.retry_after_s)
    await one.chat(ask())


async def test_token_limits_count_prompts_and_answers() -> None:
    # 100 a second; 15 of the prompt and 10 of the answer.
    one = backend(tokens_per_minute=6000, output_tokens=10)
    found = [(await outcome(one, ask("a" * 44)))[0] for _ in range(10)]
    assert found.count("429") == 6


async def test_what_is_refused_draws_nothing() -> None:
    free, limited = backend(seed=5), backend(seed=5, requests_per_minute=1200)
    expected = [text(await free.chat(ask())) for _ in range(20)]
    found = [(await outcome(limited, ask()))[0] for _ in range(200)]
    assert [told for told in found if told != "429"][:20] == expected


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": ["hello"]},
        ask(n=0),
        ask(stop=[1]),
        ask(tool_choice="required"),
        ask(tool_choice={"type": "function", "function": {"name": "other"}}, tools=[]),
        ask(response_format={"type": "json_schema"}),
        ask(content=3),
        {"messages": [{"role": "user", "content": 3}]},
    ],
)
async def test_bad_requests(body: Json) -> None:
    if body.get("content") == 3:
        body = {"messages": [{"role": "user", "content": [3]}]}
    with pytest.raises(ApiError) as caught:
        await backend().chat(body)
    assert caught.value.status == 400


async def test_prompts_are_estimated() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    parts = [{"type": "text", "text": "a" * 40}, image]
    counted = await backend().chat({"messages": [{"role": "user", "content": parts}]})
    assert counted["usage"]["prompt_tokens"] == 4 + 10 + 256
    ids = await backend().complete({"prompt": [1, 2, 3]})
    assert ids["usage"]["prompt_tokens"] == 3


async def test_structured_outputs() -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [3, 4]}}, "required": ["a"]}
    for wanted, told in [
        ({"json": schema}, {"a": 3}),
        ({"json": json.dumps(schema)}, {"a": 3}),
        ({"choice": ["4"]}, 4),
    ]:
        assert json.loads(text(await backend().chat(ask(structured_outputs=wanted)))) == told
