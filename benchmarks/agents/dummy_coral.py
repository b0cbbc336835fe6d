"""The team of `overhead.py` for matrix: Coral's roles without a model.

`agents=custom agents.file=benchmarks/agents/dummy_coral.py agents.ends=[answer_matcher]` and `agents.order`: teacher,
answer_extractor, answer_matcher, student, answer_extractor, answer_matcher.
"""

from __future__ import annotations

import asyncio
import os

import coral

from matrix.agents import State, Tools, Turn

PAUSE = bool(os.environ.get("BENCHMARK_PAUSE"))


async def teacher(state: State, tools: Tools) -> str:
    """Say something."""
    del tools
    coral.begin()
    if PAUSE:
        await asyncio.sleep(0)
    return coral.speak(state.index, state.turns)


async def student(state: State, tools: Tools) -> str:
    """Say something else."""
    del tools
    if PAUSE:
        await asyncio.sleep(0)
    return coral.speak(state.index, state.turns)


async def answer_extractor(state: State, tools: Tools) -> str:
    """Say which option the speaker meant."""
    del tools
    if PAUSE:
        await asyncio.sleep(0)
    return coral.extract(state.index, state.turns)


async def answer_matcher(state: State, tools: Tools) -> Turn:
    """End the row when both agree."""
    del tools
    if PAUSE:
        await asyncio.sleep(0)
    agree = coral.agree(state.task, state.turns)
    return Turn(end="agreement" if agree else None, data={"agreement": agree, "rated_turns": state.turns // 3 + 1})
