"""The team of `paper.py` for matrix: one role that does what its row has to, a step a turn."""

from __future__ import annotations

import asyncio

import coral
import paper_rows

from matrix.agents import State, Tools, Turn


async def _tool(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "done"


async def worker(state: State, tools: Tools) -> Turn:
    """Take the next step."""
    coral.begin()
    steps = paper_rows.steps(state.task["scenario"], state.index)
    kind, amount = steps[state.turns]
    if kind == "model":
        text = (await tools.llm([{"role": "user", "content": "Go on."}], max_tokens=int(amount))).text[0]
    else:
        text = await tools.once("container", _tool, amount)
    return Turn(text, end="done" if state.turns + 1 == len(steps) else None)
