"""Whatever a role does, it costs its own row at most."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from matrix.data.readers import BadRow
from matrix.data.work import Work
from matrix.pipelines.metrics import summarise
from tests.agents.small_teams import run, run_one, team_file, team_spec, texts, work
from tests.fake_engine import FakeEngine, Fault


def one(folder: Path, code: str, **agents: Any) -> Any:
    """A row of a team whose only role is `alone`."""
    spec = team_spec(team_file(folder, code), **{"order": ["alone"], "repeat": False, **agents})
    return run_one(spec, folder, x="row")


ASKS = """
    async def alone(state, tools):
        await tools.llm([{"role": "user", "content": "one two three four"}])
        return "asked"
"""


async def test_an_exception_is_an_error_with_its_traceback(tmp_path: Path) -> None:
    code = """
        def helper(): return {}["nothing"]

        async def alone(state, tools):
            await tools.llm([{"role": "user", "content": "x"}])
            return helper()
    """
    spec = team_spec(team_file(tmp_path, code), order=["alone"], repeat=False)
    async with FakeEngine() as engine:
        row = await run_one(spec, tmp_path, engine.url)
    assert row.error is not None
    assert (row.error.type, row.error.message) == ("KeyError", "alone: 'nothing'")
    assert 'in helper\n    def helper(): return {}["nothing"]' in (row.error.traceback or "")
    assert [entry.agent for entry in row.history] == ["alone"], "what was paid for is told"
    assert row.history[0].calls[0].usage
    assert row.tokens["prompt_tokens"] == 1


@pytest.mark.parametrize(
    ("raises", "kind"),
    [
        ("raise SystemExit(3)", "SystemExit"),
        ("raise asyncio.CancelledError", "CancelledError"),
        ("raise ExceptionGroup('x', [ValueError('y')])", "ExceptionGroup"),
        ("raise StopIteration", "RuntimeError"),
        ("raise TimeoutError", "TimeoutError"),
        ("(lambda f: f(f))(lambda f: f(f))", "RecursionError"),
        ("return 5", "TypeError"),
        ("return Turn(next=5)", "route"),
        ("return Turn(next='nobody')", "route"),
        ("tools.prompt()", "data"),
        ("await tools.score('nothing', 'x')", "data"),
        ("await tools.llm([{'role': {1, 2}}])", "bad_request"),
        ("await tools.llm([{'role': {5: 6}}])", "bad_request"),
    ],
)
async def test_whatever_a_role_raises_is_its_row_s_error(tmp_path: Path, raises: str, kind: str) -> None:
    code = f"""
        async def alone(state, tools):
            if state.task["x"] == 1:
                {raises}
            return "fine"
    """
    role = {"prompt": "{{ nothing }}"}
    spec = team_spec(team_file(tmp_path, code), order=["alone"], repeat=False, roles={"alone": role})
    found = await run(spec, tmp_path, work({"x": 0}, {"x": 1}, {"x": 2}))
    assert [row.status for row in found] == ["ok", "error", "ok"]
    assert found[1].error is not None
    assert found[1].error.type == kind


async def test_a_task_of_a_role_that_is_cancelled_is_an_error(tmp_path: Path) -> None:
    code = """
        async def alone(state, tools):
            task = asyncio.ensure_future(asyncio.sleep(60))
            asyncio.get_running_loop().call_later(0.05, task.cancel)
            await task
    """
    row = await one(tmp_path, code)
    assert row.error is not None
    assert row.error.type == "CancelledError"


async def test_a_request_that_fails_for_good(tmp_path: Path) -> None:
    spec = team_spec(team_file(tmp_path, ASKS), order=["alone"], repeat=False)
    async with FakeEngine(fail=lambda _: Fault.http(400, "too long")) as engine:
        row = await run_one(spec, tmp_path, engine.url)
    assert row.error is not None
    assert (row.error.type, row.error.traceback) == ("http_400", None)
    assert row.error.message.startswith("alone: ")
    assert "too long" in row.error.message
    assert row.history[0].calls[0].error


async def test_a_role_may_take_a_failed_request_for_an_answer(tmp_path: Path) -> None:
    code = """
        async def alone(state, tools):
            try:
                await tools.llm([{"role": "user", "content": "x"}])
            except Exception as error:
                return type(error).__name__
    """
    spec = team_spec(team_file(tmp_path, code), order=["alone"], repeat=False)
    async with FakeEngine(fail=lambda _: Fault.http(400, "too long")) as engine:
        row = await run_one(spec, tmp_path, engine.url)
    assert texts(row) == [("alone", "RequestError")]


@pytest.mark.parametrize(
    "what",
    [
        "Turn(data={1: 2})",
        "Turn(data={'x': 2**70})",
        "Turn(chr(0xD800))",
    ],
)
async def test_what_json_cannot_hold_is_an_error(tmp_path: Path, what: str) -> None:
    row = await one(tmp_path, f"async def alone(state, tools): return {what}")
    assert row.error is not None
    assert row.error.type == "data"


async def test_a_row_that_cannot_be_read(tmp_path: Path) -> None:

    spec = team_spec(team_file(tmp_path, ASKS), order=["alone"], repeat=False)
    (row,) = await run(spec, tmp_path, [Work(BadRow("3", 3, "rows.jsonl:4", "is torn"), 0)])
    assert row.error is not None
    assert (row.status, row.index, row.error.type) == ("error", 3, "data")


async def test_no_rows(tmp_path: Path) -> None:
    assert await run(team_spec(team_file(tmp_path, ASKS), order=["alone"], repeat=False), tmp_path, []) == []


@pytest.mark.parametrize(
    "what",
    [
        "state.metrics.update(x='much')",
        "state.scores.update(x=1.0)",
        "Turn(5)",
        "Turn(None)",
    ],
)
async def test_what_the_summary_could_not_read_is_an_error(tmp_path: Path, what: str) -> None:
    row = await one(tmp_path, f"async def alone(state, tools): return {what}")
    assert row.error is not None
    assert row.error.type in {"data", "TypeError"}
    assert summarise([row], []).to_dict()["rows"]["error"] == 1


async def test_figures_of_numpy_and_those_that_are_none(tmp_path: Path) -> None:
    code = """
        import numpy

        async def alone(state, tools):
            state.metrics.update(a=numpy.float32(0.5), b=numpy.int64(2), c=True, d=float("nan"), e=None)
            return Turn("x", end=numpy.str_("over"))
    """
    row = await one(tmp_path, code, repeat=True, ends=["alone"])
    assert row.metrics == {"a": 0.5, "b": 2.0, "c": 1.0}
    found = summarise([row], []).to_dict()
    assert found["terminations"] == {"over": 1}
    assert found["metrics"]["a"] == {"mean": 0.5, "stderr": None, "count": 1}
    assert "d" not in found["metrics"]
