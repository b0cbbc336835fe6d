"""Tools that are apps, with a real sandbox and real containers: what roles and models get, and whose containers are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from matrix.agents.team import Team
from matrix.client.containers import ContainerClient
from matrix.data.rows import RowError
from matrix.data.work import Work
from matrix.spec import RunSpec
from tests.agents.service_apps import BOX, CODE, leased, served
from tests.agents.small_teams import opened, run, team_file, team_spec, work, written
from tests.agents.test_hand_over import begin, until
from tests.fake_engine import Body, FakeEngine

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap")

SHELL = {"kind": "container", "image": "host", "setup": "mkdir /work && echo {{ x }} > /work/log", "cwd": "/work"}
APPS = {"box": {"engine": BOX}, "code": {"engine": CODE}}


@pytest.fixture(scope="module")
def box() -> Iterator[str]:
    with served(BOX) as url:
        yield url


def spec_of(folder: Path, code: str, tools: dict[str, Any] | None = None, **agents: Any) -> RunSpec:
    """A team whose only role is `alone`, with all the tools that there are."""
    tools = tools or {"shell": SHELL}
    fields = {"order": ["alone"], "ends": ["alone"], "roles": {"alone": {"tools": list(tools)}}, **agents}
    return team_spec(team_file(folder, code), tools=tools, apps=APPS, **fields)


ADDS = """
    async def alone(state, tools):
        shell = tools.container("shell")
        ran = await shell.execute(f"echo {state.turns} >> log; cat log | tr '\\\\n' ' '")
        if state.turns == 2 and state.task.get("waits"):
            Path(state.task["waits"]).touch()
            await asyncio.sleep(60 if Path(state.task["waits"] + ".long").exists() else 0)
        return Turn(ran.output, end="done" if state.turns == 3 else None)
"""


async def test_a_row_has_a_container_and_gives_it_back(tmp_path: Path, box: str) -> None:
    code = """
        async def alone(state, tools):
            shell = tools.container("shell")
            await shell.write_file("/work/sub/a.txt", "né\\n")
            ran = await shell.execute("cat sub/a.txt; pwd; cat log; echo $WHO$AND; exit 3", env={"AND": "you"})
            content = await shell.read_file("/work/sub/a.txt")
            late = await shell.execute("sleep 20", timeout_s=0.3)
            return Turn(ran.output, end="done", data={
                "code": ran.exit_code, "read": content.decode(), "late": late.timed_out,
                "in": (await shell.execute("pwd", cwd="/tmp")).output,
            })
    """
    spec = spec_of(tmp_path, code, {"shell": {**SHELL, "env": {"WHO": "me"}}})
    found = await run(spec, tmp_path, work({"x": "one"}, {"x": "two"}), apps={"box": box})
    for row, x in zip(found, ("one", "two"), strict=True):
        assert row.error is None
        (turn,) = row.history
        assert turn.text == f"né\n/work\n{x}\nmeyou\n"
        assert turn.data == {"code": 3, "read": "né\n", "late": True, "in": "/tmp\n"}
    assert leased(box) == 0


async def test_a_resumed_row_does_in_a_new_container_what_was_done(tmp_path: Path, box: str) -> None:
    waits = str(tmp_path / "reached")
    spec = spec_of(tmp_path, ADDS)
    Path(waits + ".long").touch()
    rows = work({"x": "begun", "waits": waits})
    async with opened(spec, tmp_path, apps={"box": box}) as team:
        await begin(team, rows)
        await until(Path(waits).exists)
        assert leased(box) == 1
    assert leased(box) == 0, "who stops gives back what is held"
    Path(waits + ".long").unlink()
    (row,) = await run(spec, tmp_path, rows, apps={"box": box})
    assert row.history[-1].text == "begun 0 1 2 3 "
    assert [call.replayed for turn in row.history for call in turn.calls] == [True, True, True, True, False]
    assert leased(box) == 0


async def test_a_container_that_is_lost_in_the_middle_is_made_anew(tmp_path: Path, box: str) -> None:
    async def take_away(team: Team) -> None:
        (client,) = team.containers._clients.values()
        (container,) = client.held
        await client.ask_holder(container.lease["url"], "release", {"lease": container.id}, 10)

    waits = str(tmp_path / "reached")
    spec = spec_of(tmp_path, ADDS.replace("60 if", "0.5 if"))
    Path(waits + ".long").touch()
    async with opened(spec, tmp_path, apps={"box": box}) as team:
        over = await begin(team, work({"x": "begun", "waits": waits}))
        await until(Path(waits).exists)
        await take_away(team)
        await until(lambda: over.finished)
    (row,) = written(tmp_path)
    assert row.history[-1].text == "begun 0 1 2 3 "
    assert leased(box) == 0


async def test_a_row_that_moves_takes_its_container_along(tmp_path: Path, box: str) -> None:
    spec = spec_of(tmp_path, ADDS.replace("60 if", "0.5 if"))
    waits = str(tmp_path / "reached")
    Path(waits + ".long").touch()
    async with opened(spec, tmp_path, apps={"box": box}, writer="driver-1") as second:
        async with opened(spec, tmp_path, apps={"box": box}, writer="driver-0") as first:
            over = await begin(first, work({"x": "begun", "waits": waits}))
            await until(Path(waits).exists)
            first.give(1)
            await until(lambda: over.handed_over)
        assert leased(box) == 1, "the peer that it left keeps its hands off it"
        later = await begin(second, over.handed_over)
        await until(lambda: later.finished)
    (row,) = written(tmp_path)
    assert row.history[-1].text == "begun 0 1 2 3 "
    leases = [call for turn in row.history for call in turn.calls if call.name == "lease:shell"]
    assert len(leases) == 1
    assert leased(box) == 0


async def test_a_row_that_is_given_up_gives_its_container_back(tmp_path: Path, box: str) -> None:
    async with ContainerClient(box, api_key=None) as client:
        container = await client.acquire("host")
        client.forget(container)
    assert leased(box) == 1
    step = {"index": 0, "trial": 0, "at": "0.1", "name": "lease:shell", "digest": "x", "result": container.lease}
    (one,) = work({"x": "killer"})
    dead: Work = one._replace(steps=(json.dumps(step).encode(),), give_up=RowError("died", "of it", 6))
    spec = spec_of(tmp_path, ADDS)
    async with opened(spec, tmp_path, apps={"box": box}) as team:
        over = await begin(team, [dead])
        await until(lambda: over.finished)
    assert leased(box) == 0


async def test_setup_and_images_that_fail_are_errors_of_the_row(tmp_path: Path, box: str) -> None:
    spec = spec_of(tmp_path, ADDS, {"shell": {**SHELL, "setup": "echo no {{ x }} >&2; exit 4", "image": "{{ image }}"}})
    rows = work({"x": "luck", "image": "host"}, {"x": "luck", "image": "other"}, {"x": "luck"})
    setup, image, column = await run(spec, tmp_path, rows, apps={"box": box})
    assert setup.error is not None
    assert "agents.tools.shell.setup fails: exit code 4\nno luck" in setup.error.message
    assert image.error is not None
    assert "image=other: this app doesn't have it in engine.images" in image.error.message
    assert column.error is not None
    assert "agents.tools.shell.image: 'image' is undefined" in column.error.message
    assert leased(box) == 0


CALLS = """
    async def alone(state, tools):
        messages = [{"role": "user", "content": "go"}]
        response = await tools.llm(messages)
        for call in response.tool_calls[0]:
            messages.append(await tools.answer(call))
        return Turn("\\n--\\n".join(message["content"] for message in messages[1:]), end="done")
"""


async def test_a_model_calls_them_like_any_tool(tmp_path: Path, box: str) -> None:
    asked = [
        ("shell", {"command": "seq 1 1000; exit 2"}),
        ("shell", {"cmd": "ls"}),
        ("python", {"code": "import sys\nprint(6 * 7)\nprint('hm', file=sys.stderr)"}),
        ("python", {"code": "1 / 0"}),
    ]
    calls = [
        {"id": str(n), "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for n, (name, arguments) in enumerate(asked)
    ]

    def answer(_: Body) -> dict[str, Any]:
        return {"content": "", "tool_calls": calls}

    tools = {"shell": {**SHELL, "output_chars": 40}, "python": {"kind": "sandbox"}}
    with served(CODE) as code:
        async with FakeEngine(answer) as engine:
            spec = spec_of(tmp_path, CALLS, tools)
            (row,) = await run(spec, tmp_path, work({"x": 1}), engine.url, apps={"box": box, "code": code})
            specs = {tool["function"]["name"]: tool["function"] for tool in engine.requests[0]["tools"]}
    assert specs["shell"]["parameters"]["required"] == ["command"]
    assert specs["python"]["parameters"]["required"] == ["code"]
    shell, wrong, ok, bad = row.history[0].text.split("\n--\n")
    assert shell.startswith("exit code 2\n1\n2\n")
    assert "characters are left out here" in shell
    assert shell.endswith("999\n1000")
    assert wrong.startswith("error: arguments of shell: ")
    assert ok == "ok\n42\nhm"
    assert bad.startswith("error: ZeroDivisionError: division by zero\n")
    names = [call.name for call in row.history[0].calls]
    assert names == ["llm", "lease:shell", "shell", "python", "python"]


async def test_a_role_runs_programs_and_only_with_tools_that_it_has(tmp_path: Path) -> None:
    code = """
        async def alone(state, tools):
            done = await tools.sandbox("python", "print(input())", stdin="hello")
            judged = await tools.sandbox("python", "def f(x): return x + 1", test="assert f(1) == 2")
            try:
                tools.container("python")
            except Exception as error:
                return Turn(str(error), end="done", data={"out": done.stdout, "passed": judged.passed})
    """
    with served(CODE) as url:
        spec = spec_of(tmp_path, code, {"python": {"kind": "sandbox", "timeout_s": 5}})
        (row,) = await run(spec, tmp_path, work({"x": 1}), apps={"code": url})
    assert row.error is None, row.error
    assert row.history[0].data == {"out": "hello\n", "passed": True}
    assert row.history[0].text == "agents.roles.alone.tools=['python'] has no 'python' of kind container"
