"""Rules on `engine.args`: the arguments of the installed vLLM or SGLang, read from its source without an import.

Importing vLLM takes ten seconds and more; its command line is spelled out in two files, read in a tenth of one.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from matrix.apps.sizes import NUMBERS, number
from matrix.errors import Problem
from matrix.spec import ModelSpec, SglangEngine, VllmEngine

_FLAG = re.compile(r"--[a-z][a-z0-9_-]*")
_ENGINE = "engine/arg_utils.py"
_SERVER = ("entrypoints/launchers/cli_args.py", "entrypoints/openai/cli_args.py")
"""Where vLLM's server has its arguments now (0.32), and had them before."""
_OURS = {"host", "port", "uds", "api_key"}
"""What a replica is given by matrix."""


def check_arguments(prefix: str, engine: VllmEngine | SglangEngine, model: ModelSpec) -> list[Problem]:
    """Every argument is one that the engine knows, none is one that matrix gives.

    Args:
        prefix: What stands before `engine` and `model` in keys.
        engine: The engine.
        model: Its model; its arguments are vLLM's.
    """
    given = {f"{prefix}engine.args": engine.args}
    if isinstance(engine, VllmEngine):
        given[f"{prefix}model.args"] = model.args
    if not any(given.values()):
        return []
    known = vllm_arguments() if isinstance(engine, VllmEngine) else sglang_arguments(engine.python)
    return [found for key, args in given.items() for found in _check(key, args, engine.kind, known)]


@cache
def vllm_arguments() -> frozenset[str] | None:
    """Names of the arguments of the installed `vllm serve`, with underscores; None if they can't be found."""
    folder = _package("vllm")
    if folder is None:
        return None
    engine = folder / _ENGINE
    server = next((folder / place for place in _SERVER if (folder / place).is_file()), None)
    if server is None or not engine.is_file():
        return None
    fields = re.compile(r"\w*FrontendArgs")
    return _names(engine, fields) | _names(server, fields)


@cache
def sglang_arguments(python: str | None = None) -> frozenset[str] | None:
    """Names of the arguments of `sglang.launch_server`, with underscores; None if SGLang can't be found.

    Args:
        python: Interpreter of the environment that it is installed in; None: this one.
    """
    if python is None:
        folder = _package("sglang")
    else:
        libraries = Path(python).expanduser().parent.parent / "lib"
        folder = next(iter(libraries.glob("python3*/site-packages/sglang")), None)
    file = folder / "srt" / "server_args.py" if folder else None
    return _names(file, re.compile("ServerArgs")) if file and file.is_file() else None


def _package(name: str) -> Path | None:
    spec = find_spec(name)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def _names(file: Path, classes: re.Pattern[str]) -> frozenset[str]:
    """Flags that stand in a file, and the fields of its dataclasses that become flags."""
    tree = ast.parse(file.read_bytes())
    names = {
        node.value.lstrip("-").replace("-", "_")
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _FLAG.fullmatch(node.value)
    }
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and classes.fullmatch(node.name):
            names |= set(_fields(node.body))
    return frozenset(names)


def _fields(body: Iterable[ast.stmt]) -> Iterable[str]:
    for line in body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and not line.target.id.startswith("_"):
            yield line.target.id


def _check(key: str, args: Mapping[str, Any], kind: str, known: frozenset[str] | None) -> Iterable[Problem]:
    engine = {"vllm": "vLLM", "sglang": "SGLang"}[kind]
    for typed, value in args.items():
        # `a.b` sets a field of the JSON argument `a`.
        name = typed.replace("-", "_").partition(".")[0]
        place = f"{key}.{typed}"
        if name in _OURS:
            # Its value may be a secret.
            yield Problem(place, None, "matrix itself gives this to every replica", "leave it out")
        elif name in NUMBERS and value is not None and number(value) is None:
            yield Problem(place, value, "should be a number")
        elif known and name not in known and name.removeprefix("no_") not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
            hint = f"did you mean {' or '.join(f'{key}.{other}' for other in near)}?" if near else ""
            yield Problem(place, value, f"the installed {engine} has no such argument", hint)
