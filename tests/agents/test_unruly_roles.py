"""Roles that do what they shouldn't: their rows say so, and nobody else's."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from matrix.data.rows import AgentRow
from matrix.data.sorting import read_rows
from tests.agents.small_teams import run_one, team_file, team_spec


async def row_of(folder: Path, code: str, **agents: Any) -> AgentRow:
    """A row of a team whose only role is `alone`; it can be read again."""
    spec = team_spec(team_file(folder, code), **{"order": ["alone"], "repeat": False, **agents})
    row = await run_one(spec, folder, x="row")
    assert [one.key for one in read_rows(folder / "rows")] == [row.key]
    return row


async def test_turns_that_never_wait_meet_the_limit_of_seconds(tmp_path: Path) -> None:
    code = """
    async def alone(state, tools):
        return "on"
    """
    began = time.monotonic()
    limits = {"turns": 10**9, "seconds": 0.5}
    row = await row_of(tmp_path, code, repeat=True, ends=["alone"], limits=limits)
    assert (row.status, row.termination) == ("ok", "max_seconds")
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("does", ["state.history.append('x')", "state.history = ['x']", "state.history += [1, 2]"])
async def test_a_history_that_a_role_changes(tmp_path: Path, does: str) -> None:
    row = await row_of(tmp_path, f"async def alone(state, tools):\n    {does}\n    return 'x'")
    assert row.error is not None
    assert "state.history" in row.error.message
    assert row.history == []


async def test_entries_that_a_role_replaces(tmp_path: Path) -> None:
    code = """
    async def alone(state, tools):
        if state.history:
            state.history[0] = "x"
        return "said"
    """
    row = await row_of(tmp_path, code, repeat=True, ends=["alone"], limits={"turns": 2})
    assert row.error is not None
    assert "state.history" in row.error.message
    assert [entry.text for entry in row.history] == ["said"]


async def test_the_task_in_the_output_is_that_of_the_data_set(tmp_path: Path) -> None:
    row = await row_of(tmp_path, "async def alone(state, tools):\n    state.task['x'] = 'changed'\n    return 'x'")
    assert (row.status, row.request) == ("ok", {"task": {"x": "row"}})


@pytest.mark.parametrize("end", ["'error'", "'max_turns'", "''", "5"])
async def test_a_termination_that_is_not_a_role_s_to_give(tmp_path: Path, end: str) -> None:
    row = await row_of(tmp_path, f"async def alone(state, tools):\n    return Turn('x', end={end})")
    assert row.error is not None
    assert (row.error.type, row.termination) == ("ValueError", "error")
    assert end in row.error.message


async def test_messages_that_are_none(tmp_path: Path) -> None:
    row = await row_of(tmp_path, "async def alone(state, tools):\n    return await tools.llm('hello')")
    assert row.error is not None
    assert row.error.type == "TypeError"
    assert "role and content" in row.error.message


async def test_a_text_that_cannot_be_written_keeps_the_task_and_the_calls(tmp_path: Path) -> None:
    code = r"""
    async def paid():
        return 1

    async def alone(state, tools):
        await tools.once("paid", paid)
        return "\ud800 alone"
    """
    row = await row_of(tmp_path, code)
    assert row.error is not None
    assert (row.error.type, row.request) == ("data", {"task": {"x": "row"}})
    assert [[call.name for call in entry.calls] for entry in row.history] == [["paid"]]
