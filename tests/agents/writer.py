"""The smallest team: one role."""

from __future__ import annotations

from matrix.agents import Response, State, Tools


async def writer(state: State, tools: Tools) -> Response:
    """Ask a model the row's question."""
    return await tools.llm([{"role": "user", "content": state.task["question"]}])
