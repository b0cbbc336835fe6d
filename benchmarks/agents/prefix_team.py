"""The team of `prefix.py`: a conversation that grows, one request a turn."""

from __future__ import annotations

import asyncio
from random import Random

import coral

from matrix.agents import State, Tools

SYSTEM = (
    "You are a patient tutor of arithmetic. Take one step at a time, say what you do and why, and wait for a reply. "
)


async def talker(state: State, tools: Tools) -> str:
    """Go on with the conversation: all of it goes to the model again."""
    coral.begin()
    said = state.task["said"]
    messages = [{"role": "system", "content": SYSTEM * state.task["system"]}, {"role": "user", "content": said[0]}]
    for entry, more in zip(state.history, said[1:], strict=False):
        messages += [{"role": "assistant", "content": entry.text}, {"role": "user", "content": more}]
    if state.task["wait_s"]:
        # As long as a tool may take: others have asked meanwhile.
        await asyncio.sleep(Random(state.index * 100 + state.turns).expovariate(1 / state.task["wait_s"]))
    return (await tools.llm(messages)).text[0]
