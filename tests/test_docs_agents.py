"""docs/agents.md: its files and its commands are taken from the page, and do what it says."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from matrix.compose import compose_spec
from matrix.errors import ConfigError
from matrix.spec import RunSpec
from tests.checkout import ROOT
from tests.command import against, only_run_dir, rows, run, summary
from tests.fake_engine import FakeEngine

PAGE = (ROOT / "docs" / "agents.md").read_text()
BLOCK = re.compile(r"```(python|yaml)\n(.*?)```", re.DOTALL)
FILE = re.compile(r"`([\w./]+\.(?:py|yaml))`[^`\n]*:\n\n```\w+\n(.*?)```", re.DOTALL)
COMMAND = re.compile(r"^    (?:\$ )?matrix run ((?:.*\\\n)*.*)$", re.MULTILINE)


def commands() -> list[list[str]]:
    """Arguments of the page's runs, those with a name to be filled in left out."""
    found = [shlex.split(text.replace("\\\n", " "), comments=True) for text in COMMAND.findall(PAGE)]
    return [arguments for arguments in found if "agents.file=FILE" not in arguments]


def answer(body: dict[str, Any]) -> Any:
    """Calls the tool first if there is one; the critic likes the second draft."""
    text = body["messages"][-1]["content"]
    if text.startswith("Question:"):
        return "YES, it is." if "Answer: second" in text else "It is too short."
    if "tools" in body and body["messages"][-1]["role"] != "tool" and len(body["messages"]) == 1:
        arguments = json.dumps({"first": "2026-01-31", "second": "2026-02-28"})
        return {"tool_calls": [{"id": "1", "type": "function", "function": {"name": "days_between", "arguments": arguments}}]}  # fmt: skip
    return "second Paris" if len(body["messages"]) >= 3 and "short" in text else "first Paris"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh folder with the page's files, in which commands are typed."""
    for name, text in FILE.findall(PAGE):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "rows.jsonl").write_text('{"question": "Capital of France?", "answer": "Paris"}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    with FakeEngine.in_thread(answer=answer) as found:
        yield found


def the_command(*parts: str) -> list[str]:
    return next(arguments for arguments in commands() if set(parts) <= set(arguments))


def without_an_engine(arguments: list[str]) -> list[str]:
    return [one for one in arguments if not one.startswith(("engine=", "model"))]


def test_the_files_of_the_page_are_found() -> None:
    names = [name for name, _ in FILE.findall(PAGE)]
    assert names == ["my_team.py", "review.py", "mine/agents/review.yaml", "panel.py", "mine/agents/panel.yaml"]
    for language, text in BLOCK.findall(PAGE):
        ast.parse(text) if language == "python" else yaml.safe_load(text)


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_every_command_is_one(folder: Path, arguments: list[str]) -> None:
    if "agents.ends=[]" in arguments:
        with pytest.raises(ConfigError) as refused:
            compose_spec([*arguments, "tracker=none"])
        for problem in refused.value.problems:
            assert f"      {problem}\n" in PAGE
    else:
        assert compose_spec([*arguments, "tracker=none"]).agents is not None


def test_the_complete_team(folder: Path, engine: FakeEngine) -> None:
    arguments = without_an_engine(the_command("agents.file=my_team.py", "dataset.limit=16"))
    done = run(folder, *arguments, *against(engine.url))
    assert done.returncode == 0, done.stderr
    run_dir = only_run_dir(folder / "outputs")
    found = summary(run_dir)
    assert found["terminations"] == {"agreement": 16}
    assert found["metrics"]["drafts"] == {"mean": 2, "stderr": 0, "count": 16}
    assert found["agents"]["writer"]["turns"] == found["agents"]["critic"]["turns"] == 32
    assert [entry["agent"] for entry in rows(run_dir)[0]["history"]] == ["writer", "critic"] * 2
    assert re.search(r"ended by +│ +agreement 16 │", done.stdout)


def test_the_config_with_a_tool_and_a_scorer(folder: Path, engine: FakeEngine) -> None:
    arguments = [*the_command("agents=review"), "dataset.limit=4"]
    done = run(folder, *arguments, *against(engine.url))
    assert done.returncode == 0, done.stderr
    run_dir = only_run_dir(folder / "outputs")
    for row in rows(run_dir):
        assert row["termination"] == "end"
        writer = row["history"][0]
        assert [call["name"] for call in writer["calls"]] == ["llm", "days_between", "llm"]
    told = [body["messages"][-1] for body in engine.requests if body["messages"][-1]["role"] == "tool"]
    assert {message["content"] for message in told} == {"28"}
    assert summary(run_dir)["scores"]["right"]["samples"] == 4
    # Of a role that has some of its own sampling.
    asked = {body["temperature"] for body in engine.requests if "tools" in body}
    assert asked == {0.7}


def test_the_panel(folder: Path) -> None:
    spec = compose_spec([*the_command("agents=panel"), "tracker=none"])
    assert isinstance(spec, RunSpec)
    assert spec.agents is not None
    assert [name for name, role in spec.agents.named.items() if role.is_actor] == ["counter"]
