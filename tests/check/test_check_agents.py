"""A team's config, as the one who wrote it sees what is wrong."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from matrix.compose import compose_spec
from matrix.errors import ConfigError

CODE = """
    import os
    from matrix.agents import Role

    async def writer(state, tools): return "x"
    def plain(state, tools): return "x"

    class critic(Role):
        def __init__(self, *, most: int = 3): ...
        async def act(self, state, tools): return "x"

    class loads(Role):
        def __init__(self): raise RuntimeError("no GPU on this machine")
        async def act(self, state, tools): return "x"

    def add(a: int) -> int: return a
    def untyped(a): return a
"""
SERVER = ("tracker=none", "engine=openai", "engine.api_key_env=null", "agents=custom", "dataset=sample")
WHOLE = ("agents.order=[writer,critic]", "agents.ends=[critic]")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "team.py"
    path.write_text(textwrap.dedent(CODE))
    return path


def problems(file: Path, *overrides: str) -> list[str]:
    """What is said of a team."""
    try:
        compose_spec([*SERVER, f"agents.file={file}", *overrides])
    except ConfigError as error:
        return [str(problem) for problem in error.problems]
    return []


def test_a_team_that_is_whole(file: Path) -> None:
    assert problems(file, *WHOLE) == []
    spec = compose_spec([*SERVER, f"agents.file={file}", *WHOLE])
    assert spec.pipeline is None
    assert spec.agents is not None
    assert list(spec.agents.named) == ["writer", "critic"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["agents.order=[writer,kritic]", "agents.ends=[writer]"],
            ["agents.roles.kritic.use=kritic: {file} has no kritic (did you mean critic?)"],
        ),
        (
            ["agents.order=[writer]", "agents.ends=[critic]"],
            ["agents.ends.0=critic: no such role (did you mean writer?)"],
        ),
        (
            ["agents.order=[writer,critic]"],
            [
                (
                    "agents.order=['writer', 'critic']: no way to the end: it goes round, and nobody ends it "
                    "(agents.ends=[critic] (roles that may end a row), or agents.repeat=false)"
                )
            ],
        ),
        (
            ["agents.start=writer", "+agents.edges.writer=critic"],
            [
                "agents.edges.writer: no way to the end from here (agents.edges.writer=end)",
                "agents.edges.critic: no way to the end: no edge leads on (agents.edges.critic=end)",
            ],
        ),
        (
            ["agents.start=writer", "+agents.edges.writer=end", "+agents.edges.critic=end"],
            ["agents.roles.critic: is unreachable: no edge leads to it from writer (an edge to it, or leave it out)"],
        ),
        ([], ["agents: takes one of order, edges and graph, got none"]),
        (
            [*WHOLE, "+agents.roles.critic={options: {most: many}}"],
            [
                "agents.roles.critic.options.most='many': should be a valid integer, unable to parse string as an integer"
            ],
        ),
        (
            [*WHOLE, "+agents.roles.critic={options: {mots: 1}}"],
            ["agents.roles.critic.options.mots=1: no such option (did you mean most?)"],
        ),
        (
            [*WHOLE, "+agents.roles.writer={use: plain}"],
            [
                (
                    "agents.roles.writer.use=plain: is neither an async function nor a class (async def NAME(state, tools), "
                    "or a class with async def act(self, state, tools))"
                )
            ],
        ),
        (
            [*WHOLE, "+agents.roles.writer={use: 'os:system'}"],
            ["agents.roles.writer.use=os:system: os isn't among agents.modules (agents.modules=[os])"],
        ),
        (
            [*WHOLE, "+agents.roles.writer={prompt: '{{ x'}"],
            ["agents.roles.writer.prompt={{ x: not a valid Jinja template: "],
        ),
        (
            [*WHOLE, "+agents.roles.writer={app: judge}"],
            ["agents.roles.writer.app=judge: no such app "],
        ),
        (
            [*WHOLE, "+agents.roles.writer={tools: [ad]}", "+agents.tools.add=add"],
            ["agents.roles.writer.tools=ad: no such tool (did you mean add?)"],
        ),
        (
            [*WHOLE, "+agents.roles.writer={tools: [untyped]}", "+agents.tools.untyped=untyped"],
            ["agents.tools.untyped.use=untyped: a has no type hint (a: str, for instance)"],
        ),
        (
            [*WHOLE, "+agents.roles.writer={sampling: {temperature: hot}}"],
            ["agents.roles.writer.sampling.temperature='hot': "],
        ),
        (
            [*WHOLE, "+agents.roles.writer={sampling: {n: 2}}"],
            ["agents.roles.writer.sampling.n=2: a role asks for one answer at a time (sampling.n=1)"],
        ),
        (
            [*WHOLE, "+agents.roles.writer={actor: true, tools: [add]}", "+agents.tools.add=add"],
            [
                (
                    "agents.roles.writer.tools=['add']: a role in processes of its own has no tools "
                    "(let a role that runs in the peers call them)"
                )
            ],
        ),
        (
            ["agents.start=writer", "+agents.edges.writer=[{to: end, when: 'turns >'}]"],
            ["agents.edges.writer.0.when=turns >: not a Jinja expression: "],
        ),
        (
            ["agents.start=writer", "+agents.edges.writer=[{to: [writer, critic]}]"],
            ["agents.edges.writer.0: join (who is next when all are done) goes with several roles in to"],
        ),
        (
            [*WHOLE, "workload.drivers=4", "workload.max_in_flight=3"],
            ["workload.max_in_flight=3: is less than workload.drivers=4, and each needs one (fewer drivers)"],
        ),
        (
            ["agents.order=[loads]", "agents.repeat=false"],
            ["agents.roles.loads.use=loads: can't be made: RuntimeError: no GPU on this machine, line 13"],
        ),
        (["agents.order=[loads]", "agents.repeat=false", "+agents.roles.loads={actor: true}"], []),
    ],
)
def test_what_is_wrong(file: Path, overrides: list[str], said: list[str]) -> None:
    found = problems(file, *overrides)
    assert len(found) == len(said), found
    for one, start in zip(found, said, strict=True):
        assert one.startswith(start.replace("{file}", str(file)).replace("{{", "{{")), found


def test_all_at_once(file: Path) -> None:
    found = problems(
        file, "agents.order=[writer,critic]", "+agents.roles.writer={use: plain, app: x, prompt: '{{'}",
        "+agents.tools.untyped=untyped", "workload.max_attempts=0",
    )  # fmt: skip
    assert len(found) == 6, found


def test_a_file_that_is_not_there_or_fails(tmp_path: Path) -> None:
    assert problems(tmp_path / "none.py", *WHOLE)[0].startswith(f"agents.file={tmp_path / 'none.py'}: no such file")
    broken = tmp_path / "broken.py"
    broken.write_text("import nothing_like_this\n")
    found = problems(broken, *WHOLE)
    assert set(found) == {
        f"agents.file={broken}: fails with ModuleNotFoundError: No module named 'nothing_like_this', line 1"
    }
    assert len(found) == 1, "said once, not for each role"


def test_a_team_and_a_pipeline(file: Path) -> None:
    found = problems(file, *WHOLE, "pipeline=sample_qa")
    assert any("only one of them can work through the rows" in one for one in found), found


def test_neither(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing is to be done with the rows"):
        compose_spec(["tracker=none", "engine=openai", "engine.api_key_env=null", "pipeline=null"])


BOX = ("apps.box.engine=container", "++apps.box.engine.images.host=host")
SHELL = ("agents.roles.writer.tools=[shell]", "agents.tools.shell.kind=container", "agents.tools.shell.image=host")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "agents.tools.shell.app=box: no such app (apps.box.engine=container makes it)"),
        (["apps.box.engine=sandbox"], "agents.tools.shell.app=box: is an app with engine=sandbox (apps.box.en"),
        ([*BOX, "agents.tools.shell.image=hosd"], "agents.tools.shell.image=hosd: the app has no such image (apps.box"),
        ([*BOX, "agents.tools.shell.image='{{ x '"], "agents.tools.shell.image={{ x : not a valid Jinja template"),
        (
            [*BOX, "agents.roles.writer.app=box"],
            "agents.roles.writer.app=box: serves no model, but is an app with engi",
        ),
    ],
)
def test_tools_that_are_apps(file: Path, overrides: list[str], said: str) -> None:
    (problem,) = problems(file, *WHOLE, *SHELL, *overrides)
    assert problem.startswith(said)


def test_a_sandbox_has_the_language(file: Path) -> None:
    sandbox = ("apps.code.engine=sandbox", "agents.tools.run.kind=sandbox", "agents.roles.writer.tools=[run]")
    assert problems(file, *WHOLE, *sandbox) == []
    (problem,) = problems(file, *WHOLE, *sandbox, "agents.tools.run.language=pyton")
    assert problem == "agents.tools.run.language=pyton: the app has no such language (did you mean python?)"


def test_tools_whose_apps_are_there(file: Path) -> None:
    assert problems(file, *WHOLE, *SHELL, *BOX) == []
    for known in ("agents.tools.shell.image='{{ question }}'", "++apps.box.engine.images={*: 'images/{name}'}"):
        assert problems(file, *WHOLE, *SHELL, *BOX, known) == []
