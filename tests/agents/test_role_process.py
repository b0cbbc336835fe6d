"""A role in a process of its own, without the process: what it replies."""

from __future__ import annotations

from pathlib import Path

from matrix.agents.actors import Message, RoleProcess
from matrix.agents.state import State
from tests.agents.small_teams import team_file, team_spec

CODE = """
async def judge(state, tools):
    if state.index == 1:
        return Turn("x", end="error")
    if state.index == 2:
        return 42
    state.metrics["right"] = 1.0
    return Turn("yes", end="agreed")
"""


async def test_each_turn_of_a_batch_has_its_own_reply(tmp_path: Path) -> None:
    roles = {"judge": {"actor": True}}
    spec = team_spec(team_file(tmp_path, CODE), order=["judge"], repeat=False, roles=roles)
    process = RoleProcess(spec, "judge", tmp_path)
    good, reserved, nonsense = await process.act([Message(State(str(i), i, 0, 0, {})) for i in range(3)])
    assert good is not None
    assert (good["turn"]["end"], good["metrics"], good["error"]) == ("agreed", {"right": 1.0}, None)
    assert reserved is not None
    assert (reserved["turn"], reserved["error"]["type"]) == (None, "ValueError")
    assert nonsense is not None
    assert nonsense["error"]["type"] == "TypeError"
