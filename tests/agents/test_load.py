"""A team's code by name: what is found, and what is said of it before anything runs."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest

from matrix.agents import load
from matrix.agents.load import Loader
from matrix.errors import ConfigError
from matrix.spec.agents import RoleSpec

CODE = """
    import abc
    from typing import Literal, Any
    from matrix.agents import Role

    async def speaker(state, tools): return "hi"
    def plain(state, tools): return "hi"
    async def three(state, tools, more): return "hi"
    number = 5

    class Plain: pass

    class NotAsync:
        def act(self, state, tools): return "hi"

    class Abstract(Role):
        @abc.abstractmethod
        def more(self): ...
        async def act(self, state, tools): return "hi"

    class Own:
        async def act(self, state, tools): return "hi"

    class Optioned(Role):
        def __init__(self, *, name: str, most: int = 3, how: Literal["a", "b"] = "a", rest: Any = None, other=None):
            self.given = (name, most, how, rest, other)
        async def act(self, state, tools): return "hi"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path, CODE)


def written(folder: Path, code: str) -> Path:
    path = folder / "team.py"
    path.write_text(textwrap.dedent(code))
    return path


def said(loader: Loader, name: str, **fields: Any) -> str:
    """What is wrong with a role."""
    with pytest.raises(ConfigError) as found:
        loader.role(name, RoleSpec(**fields))
    return "\n".join(map(str, found.value.problems))


async def test_a_name_in_the_file(file: Path) -> None:
    speaker: Any = Loader(file).role("speaker", RoleSpec())
    assert await speaker(None, None) == "hi"
    same: Any = Loader(file).role("other", RoleSpec(use="speaker"))
    assert same is speaker, "a file is run once"
    made: Any = Loader(file).role("Own", RoleSpec())
    assert await made.act(None, None) == "hi"


def test_a_name_in_a_module() -> None:
    assert Loader(None).find("matrix.agents:Role", "key").__name__ == "Role"
    found = said(Loader(None), "a", use="matrix.agents:Rolle")
    assert found.startswith("agents.roles.a.use=matrix.agents:Rolle: matrix.agents has no Rolle")
    assert "Role" in found
    assert "can't be imported" in said(Loader(None), "a", use="matrix.nothing:x")


def test_only_modules_that_are_allowed() -> None:
    assert said(Loader(None), "a", use="os:system") == (
        "agents.roles.a.use=os:system: os isn't among agents.modules (agents.modules=[os])"
    )
    assert said(Loader(None), "a", use="matrixx.y:z").startswith("agents.roles.a.use=matrixx.y:z: matrixx isn't")
    assert "isn't among" in said(Loader(None, ["xml.dom"]), "a", use="xml.sax:parse")
    assert Loader(None, ["xml.dom"]).find("xml.dom.minidom:parse", "key").__name__ == "parse"


def test_no_file(tmp_path: Path) -> None:
    assert "is in no module and there is no agents.file" in said(Loader(None), "a")
    assert "no such file" in said(Loader(tmp_path / "nothing.py"), "a")
    (tmp_path / "team.txt").write_text("")
    assert "is no Python file" in said(Loader(tmp_path / "team.txt"), "a")


def test_a_file_that_fails_says_at_which_line(tmp_path: Path) -> None:
    path = written(tmp_path, "import os\n\ndef helper():\n    return {}['x']\n\nhelper()\n")
    assert said(Loader(path), "a") == f"agents.file={path}: fails with KeyError: 'x', line 4"
    path.write_text("def f(:\n    pass\n")
    assert "fails with SyntaxError" in said(Loader(path), "a")
    assert "line 1" in said(Loader(path), "a")
    path.write_text("import sys\nsys.exit(3)\n")
    assert "fails with SystemExit: 3, line 2" in said(Loader(path), "a")


def test_what_is_no_role(file: Path) -> None:
    loader = Loader(file)
    assert "has no speakre (did you mean speaker?)" in said(loader, "speakre")
    assert "is neither an async function nor a class" in said(loader, "plain")
    assert "is neither an async function nor a class" in said(loader, "number")
    assert "doesn't take (state, tools)" in said(loader, "three")
    assert "is a class without an async method `act`" in said(loader, "Plain")
    assert "is a class without an async method `act`" in said(loader, "NotAsync")
    assert "lacks more" in said(loader, "Abstract")
    assert "a function takes no options" in said(loader, "speaker", options={"x": 1})


def test_options_are_checked_by_their_annotations(file: Path) -> None:
    loader = Loader(file)
    made: Any = loader.role("Optioned", RoleSpec(options={"name": "n"}))
    assert made.given == ("n", 3, "a", None, None)
    made = loader.role("Optioned", RoleSpec(options={"name": "n", "most": 4, "how": "b", "rest": [1], "other": {}}))
    assert made.given == ("n", 4, "b", [1], {})
    assert said(loader, "Optioned") == "agents.roles.Optioned.options.name: is missing"
    found = said(loader, "Optioned", options={"name": 5, "most": "x", "how": "c", "mots": 1}).splitlines()
    assert found[0] == "agents.roles.Optioned.options.mots=1: no such option (did you mean most?)"
    assert [line.partition("=")[0].rpartition(".")[2] for line in found[1:]] == ["name", "most", "how"]
    assert "takes no options" in said(loader, "Own", options={"x": 1})


def test_an_init_that_fails_is_a_problem_of_the_config(tmp_path: Path) -> None:
    code = """
        class Role:
            def __init__(self, *, path: str):
                self.text = open(path).read()
            async def act(self, state, tools): return self.text
    """
    found = said(Loader(written(tmp_path, code)), "Role", options={"path": "/nothing/there"})
    assert found.startswith("agents.roles.Role.use=Role: can't be made: FileNotFoundError: [Errno 2]")


def test_a_check_makes_no_role(tmp_path: Path) -> None:
    """It may take minutes, and a GPU."""
    code = """
        class Role:
            def __init__(self, *, path: str): raise RuntimeError("no GPU here")
            async def act(self, state, tools): return self.text
    """
    found, options = Loader(written(tmp_path, code)).check_role("Role", RoleSpec(options={"path": "x"}))
    assert (found.__name__, options) == ("Role", {"path": "x"})


def test_annotations_that_cannot_be_read(tmp_path: Path) -> None:
    code = """
        from __future__ import annotations
        from typing import TYPE_CHECKING
        if TYPE_CHECKING:
            from decimal import Decimal
        class Role:
            def __init__(self, *, x: Decimal): ...
            async def act(self, state, tools): return "x"
    """
    found = said(Loader(written(tmp_path, code)), "Role", options={"x": 1})
    assert "has a type hint that can't be read: name 'Decimal' is not defined" in found


def test_a_file_s_classes_know_their_module(file: Path) -> None:
    import pickle

    found = Loader(file).find("Own", "key")
    assert pickle.loads(pickle.dumps(found)) is found
    assert load._load_file(file.resolve()) is load._load_file(file.resolve())
