"""What roles call, and what a row holds and gives back."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.agents.small_teams import opened, run_one, team_file, team_spec, work, written
from tests.fake_engine import FakeEngine


def one(folder: Path, code: str, **agents: Any) -> Any:
    """A row of a team whose only role is `alone`."""
    spec = team_spec(team_file(folder, code), **{"order": ["alone"], "repeat": False, **agents})
    return run_one(spec, folder, x="row")


async def test_tools_are_called_by_the_role_that_has_them(tmp_path: Path) -> None:
    code = """
        def add(a: int, b: int) -> int:
            return a + b

        async def alone(state, tools):
            call = {"id": "c7", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
            answer = await tools.answer(call)
            bad = await tools.call("add", {"a": "x", "b": 2})
            none = await tools.call("other", "{}")
            names = [spec["function"]["name"] for spec in tools.specs]
            await tools.llm([{"role": "user", "content": "x"}])
            return Turn(data={"answer": answer, "bad": bad, "none": none, "names": names})
    """
    spec = team_spec(
        team_file(tmp_path, code),
        order=["alone"],
        repeat=False,
        roles={"alone": {"tools": ["add"]}},
        tools={"add": "add"},
    )
    async with FakeEngine() as engine:
        row = await run_one(spec, tmp_path, engine.url)
        assert engine.requests[0]["tools"][0]["function"]["name"] == "add"
    (entry,) = row.history
    assert entry.data is not None
    assert entry.data["answer"] == {"role": "tool", "tool_call_id": "c7", "content": "3"}
    assert entry.data["names"] == ["add"]
    assert entry.data["bad"].startswith("error: ")
    assert entry.data["none"] == "error: there is no tool 'other'; there are: add"
    assert [(call.name, bool(call.error)) for call in entry.calls] == [("add", False), ("add", True), ("llm", False)]


HOLDS = """
    class alone(Role):
        async def act(self, state, tools):
            place = await tools.once("place", self.take, state.id)
            await tools.once("other", self.take, "x")
            note(f"act {place}")
            if state.task.get("fails"):
                raise ValueError("no")
            return place

        async def take(self, name):
            note(f"take {name}")
            return f"place {name}"

        async def release(self, state, held):
            note(f"release {state.id} {state.turns} {sorted(held.items())}")

    def note(text):
        with open(Path(__file__).with_name("notes"), "a") as file:
            file.write(text + chr(10))
"""


def notes(folder: Path) -> list[str]:
    return (folder / "notes").read_text().splitlines()


@pytest.mark.parametrize("fails", [False, True])
async def test_what_a_row_holds_is_given_back_once(tmp_path: Path, fails: bool) -> None:
    spec = team_spec(team_file(tmp_path, HOLDS), order=["alone"], repeat=False)
    row = await run_one(spec, tmp_path, fails=fails)
    assert row.status == ("error" if fails else "ok")
    assert notes(tmp_path) == [
        "take 0",
        "take x",
        "act place 0",
        f"release 0 {1 - fails} [('other', 'place x'), ('place', 'place 0')]",
    ]


@pytest.mark.parametrize("fails", ["raise ValueError('gone')", "await asyncio.sleep(60)", "raise SystemExit"])
async def test_giving_back_that_fails_or_hangs_costs_no_row(tmp_path: Path, fails: str) -> None:
    code = f"""
        class alone(Role):
            async def act(self, state, tools):
                return await tools.once("place", asyncio.sleep, 0)

            async def release(self, state, held):
                {fails}
    """
    row = await one(tmp_path, code, roles={"alone": {"timeout_s": 0.3}})
    assert (row.status, row.termination) == ("ok", "end")
    assert row.took_s < 5


async def test_a_row_that_holds_something_is_not_turned_away_at_the_gate(tmp_path: Path) -> None:
    """With the budget spent no more rows are begun, and those that are go on: they would hold it until a resume."""

    code = """
        class alone(Role):
            async def act(self, state, tools):
                await tools.once("place", asyncio.sleep, 0.3)
                return await tools.llm([{"role": "user", "content": "x"}])

            async def release(self, state, held):
                Path(__file__).with_name("notes").write_text("given back")
    """
    spec = team_spec(team_file(tmp_path, code), order=["alone"], repeat=False)
    async with FakeEngine() as engine, opened(spec, tmp_path, engine.url) as team:
        team.begin(work({})[0])
        await asyncio.sleep(0.1)
        for client in team._clients.values():
            client.gate.close()
        await team.run(iter(()))
    (row,) = written(tmp_path)
    assert row.status == "ok"
    assert notes(tmp_path) == ["given back"]


@pytest.mark.parametrize("what", ["{1: 2}", "{1, 2}", "Path('a')"])
async def test_once_keeps_what_json_can_hold(tmp_path: Path, what: str) -> None:
    code = f"""
        async def give(): return {what}

        async def alone(state, tools): return await tools.once("give", give)
    """
    row = await one(tmp_path, code)
    assert row.error is not None
    assert row.error.type == "data"
