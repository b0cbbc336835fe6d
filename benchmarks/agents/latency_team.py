"""The team of `in_flight.py` for matrix: five turns of one role, which waits as a model would, or asks one."""

from __future__ import annotations

import asyncio
import time

import coral
import latency

from matrix.agents import State, Tools, Turn


async def _answer(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "The discount is two dollars."


async def sleeper(state: State, tools: Tools) -> Turn:
    """Wait for what was drawn; a step that is journalled as a model's answer is."""
    coral.begin()
    text = await tools.once("model", _answer, latency.draw(state.index, state.turns))
    return Turn(text, data={"ended": time.time()})


async def asker(state: State, tools: Tools) -> Turn:
    """Ask the simulated engine."""
    coral.begin()
    answer = await tools.llm([{"role": "user", "content": state.task["question"]}])
    return Turn(answer.text[0], data={"ended": time.time()})
