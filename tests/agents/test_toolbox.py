"""The tools of a team together: names, arguments as a model writes them, errors as it can read them."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from matrix.agents.toolbox import Toolbox
from matrix.errors import ConfigError, Problem, ToolError
from matrix.spec.agents import AgentsSpec

SERVER = Path(__file__).parent / "mcp_server.py"


def double(number: int) -> int:
    """Twice a number."""
    if number < 0:
        raise ValueError("no negative numbers")
    return 2 * number


async def hangs() -> str:
    """Hangs."""
    await asyncio.sleep(100)
    return ""


def now() -> dict[str, int]:
    return {"hour": 3}


def untyped(a) -> str: ...  # type: ignore[no-untyped-def,empty-body]


FUNCTIONS = {"double": double, "hangs": hangs, "now": now, "untyped": untyped}


def find(use: str, key: str) -> object:
    if use not in FUNCTIONS:
        raise ConfigError([Problem(key, use, "is not there")])
    return FUNCTIONS[use]


def toolbox(**tools: Any) -> Toolbox:
    return Toolbox(AgentsSpec(name="team", order=["a"], tools=tools).tools, find)


def server(notes: Path, **fields: Any) -> dict[str, Any]:
    return {"kind": "mcp", "command": [sys.executable, str(SERVER), "stdio"], "env": {"NOTES": str(notes)}, **fields}


def names(specs: list[dict[str, Any]]) -> list[str]:
    return [spec["function"]["name"] for spec in specs]


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("twice", {"number": 4}, "8"),
        ("twice", '{"number": 4}', "8"),
        ("now", "", '{"hour":3}'),
        ("twice", '{"number": ', "error: arguments of twice are no JSON: Expecting value: line 1 column 12 (char 11)"),
        ("twice", "[4]", "error: arguments of twice are no JSON object, but a list"),
        ("twice", "null", "error: arguments of twice are no JSON object, but a NoneType"),
        (
            "twice",
            {"number": "x"},
            "error: arguments of twice: number: Input should be a valid integer, unable to parse string as an integer",
        ),
        ("twice", {"number": 1, "times": 2}, "error: arguments of twice: times: Extra inputs are not permitted"),
        ("twice", {"number": -1}, "error: ValueError: no negative numbers"),
        ("thrice", {}, "error: there is no tool thrice; there are: twice, now"),
        ("double", {}, "error: there is no tool double; there are: twice, now"),
    ],
)
async def test_calls_give_text_whatever_happens(name: str, arguments: dict[str, Any] | str, text: str) -> None:
    tools = toolbox(twice="double", now="now")
    await tools.open()
    assert await tools.call(name, arguments) == text
    await tools.close()


async def test_a_cancelled_call_is_cancelled() -> None:
    tools = toolbox(hangs="hangs")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(tools.call("hangs", {}), 0.05)


def test_everything_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as found:
        toolbox(
            twice="double", one="untyped", two="nowhere", three={"kind": "mcp", "url": "shop:80"}, **{"a tool": "now"}
        )
    assert [str(problem) for problem in found.value.problems] == [
        "agents.tools.one.use=untyped: a has no type hint (a: str, for instance)",
        "agents.tools.two.use=nowhere: is not there",
        "agents.tools.three.url=shop:80: is no http address (http://HOST:PORT/mcp)",
        "agents.tools.a tool: is no name for a tool: a model knows it by letters, digits, _ and -, 64 at most",
    ]


async def test_functions_and_a_server_together(tmp_path: Path) -> None:
    tools = toolbox(twice="double", shop=server(tmp_path / "notes", only=["add", "text.echo"]), now="now")
    await tools.open()
    assert names(tools.specs(["shop", "twice"])) == ["add", "text_echo", "twice"]
    assert tools.specs([]) == []
    assert await tools.call("add", '{"a": 3}') == "4"
    assert await tools.call("add", '{"a": "3"}') == "error: arguments of add: a: '3' is not of type 'integer'"
    assert await tools.call("text_echo", {"text": "x"}) == "x"
    assert (
        await tools.call("twice", {"number": 4}, ["shop"]) == "error: there is no tool twice; there are: add, text_echo"
    )
    assert json.loads(json.dumps(tools.specs(["shop"]))) == tools.specs(["shop"])
    await tools.close()


async def test_two_tools_with_one_name(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    tools = toolbox(add="double", shop=server(notes, only=["add", "pid"]), other=server(notes, only=["pid"]))
    await tools.open()
    assert names(tools.specs(["add", "other"])) == ["add", "pid"]
    for wanted, said in [
        (["add", "shop"], "add and shop both have a tool add"),
        (["shop", "other"], "shop and other both have a tool pid"),
    ]:
        with pytest.raises(ConfigError, match=said):
            tools.specs(wanted)
    # Each role has its own.
    assert await tools.call("pid", {}, ["shop"]) != await tools.call("pid", {}, ["other"])
    await tools.close()


async def test_a_server_that_is_not_there_ends_the_others(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    tools = toolbox(shop=server(notes), broken={"kind": "mcp", "command": ["no-such-command"]})
    with pytest.raises(ToolError, match=r"agents\.tools\.broken: the command no-such-command doesn't serve"):
        await tools.open()
    await tools.close()
