"""The prefix cache of the simulated engine: what is found, what is forgotten, and what that does to time and usage."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrix.serving.backend import Json
from matrix.serving.simulated.backend import SimulatedBackend
from matrix.serving.simulated.prefix import PrefixCache
from matrix.spec import ModelSpec
from matrix.spec.engine import SimulatedEngine


def backend(tokens: int | None = 10_000, **engine: Any) -> SimulatedBackend:
    spec = {"kind": "simulated", "first_token_s": 1, "token_s": 0, "output_tokens": 40, "prefix_cache_tokens": tokens}
    return SimulatedBackend(SimulatedEngine.model_validate({**spec, **engine}), ModelSpec(name="sim"))


def say(*contents: str) -> Json:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[at % 2], "content": text} for at, text in enumerate(contents)]}


def cached(answer: Json) -> int:
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])


async def timed(of: SimulatedBackend, body: Json) -> tuple[Json, float]:
    began = asyncio.get_running_loop().time()
    answer = await of.chat(body)
    return answer, asyncio.get_running_loop().time() - began


async def test_a_conversation_finds_its_earlier_turns() -> None:
    one = backend()
    first, seconds = await timed(one, say("q" * 784))
    assert (cached(first), seconds) == (0, pytest.approx(1))
    told = first["choices"][0]["message"]["content"]
    second, seconds = await timed(one, say("q" * 784, told, "more" * 16))
    prompt = second["usage"]["prompt_tokens"]
    # The question and the answer, up to the last whole block of 16 tokens.
    assert cached(second) == (800 + 16 + len(told)) // 64 * 16
    assert seconds == pytest.approx(1 - cached(second) / prompt)


async def test_other_beginnings_find_nothing() -> None:
    one = backend()
    await one.chat(say("a" + "b" * 1000))
    assert cached(await one.chat(say("c" + "b" * 1000))) == 0


async def test_the_last_token_is_always_computed() -> None:
    one = backend()
    body = say("a" * (16 * 4 * 5 - 16))
    await one.chat(body)
    again, seconds = await timed(one, body)
    assert (cached(again), again["usage"]["prompt_tokens"]) == (64, 80)
    assert seconds == pytest.approx(16 / 80)


async def test_streams_tell_of_it_too() -> None:
    one = backend()
    body = {**say("a" * 1000), "stream": True, "stream_options": {"include_usage": True}}
    usage = [[chunk async for chunk in one.stream_chat(body)][-1]["usage"] for _ in range(2)]
    assert [one["prompt_tokens_details"]["cached_tokens"] for one in usage] == [0, 240]


@pytest.mark.parametrize("prompt", ["a" * 1000, list(range(70_000, 70_250)), ["a" * 1000]])
async def test_completions_of_text_and_of_tokens(prompt: Any) -> None:
    one = backend()
    usage = [(await one.complete({"prompt": prompt}))["usage"] for _ in range(2)]
    assert [one["prompt_tokens_details"]["cached_tokens"] for one in usage] == [0, 240]


async def test_without_a_cache_nothing_is_told() -> None:
    one = backend(None)
    for _ in range(2):
        answer, seconds = await timed(one, say("a" * 1000))
        assert "prompt_tokens_details" not in answer["usage"]
        assert seconds == pytest.approx(1)


def test_the_longest_unused_is_forgotten_from_its_end() -> None:
    cache = PrefixCache(64)
    cache.keep("a" * 64 + "b" * 64)
    cache.keep("c" * 64 * 3)
    # Room for four blocks: of the older text its beginning is left.
    assert cache.read("a" * 64 + "b" * 64 + "!") == 16
    assert cache.read("c" * 64 * 3 + "!") == 48


@given(st.lists(st.text("ab", max_size=400), max_size=12), st.integers(16, 200))
def test_what_is_found_was_said_before(texts: list[str], tokens: int) -> None:
    cache = PrefixCache(tokens)
    said: list[str] = []
    for text in texts:
        found = cache.read(text) * 4
        assert found <= max(0, len(text) - 1)
        assert not found or any(before[:found] == text[:found] for before in said)
        cache.keep(text)
        said.append(text)
