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

_FLAG = "--[a-z][a-z0-9_-]*"
_ENGINE = "engine/arg_utils.py"
_SERVER = ("entrypoints/launchers/cli_args.py", "entrypoints/openai/cli_args.py")
"""Where vLLM's server has its arguments now (0.32), and had them before."""
_CLASSES = r"\w*FrontendArgs|ServerArgs"
"""Dataclasses whose fields become flags: vLLM's and SGLang's."""
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
    files = vllm_files() if isinstance(engine, VllmEngine) else sglang_files(engine.python)
    return [found for key, args in given.items() for found in _check(key, args, engine.kind, files)]


def vllm_files() -> tuple[Path, ...]:
    """Where the installed `vllm serve` has its arguments; empty if that can't be found."""
    folder = _package("vllm")
    if folder is None:
        return ()
    server = next((folder / place for place in _SERVER if (folder / place).is_file()), None)
    return (folder / _ENGINE, server) if server and (folder / _ENGINE).is_file() else ()


def sglang_files(python: str | None = None) -> tuple[Path, ...]:
    """Where `sglang.launch_server` has its arguments; empty if that can't be found.

    Args:
        python: Interpreter of the environment that SGLang is installed in; None: this one.
    """
    if python is None:
        folder = _package("sglang")
    else:
        libraries = Path(python).expanduser().parent.parent / "lib"
        folder = next(iter(libraries.glob("python3*/site-packages/sglang")), None)
    file = folder / "srt" / "server_args.py" if folder else None
    return (file,) if file and file.is_file() else ()


@cache
def argument_names(files: tuple[Path, ...]) -> frozenset[str]:
    """Names of arguments, with underscores: flags that stand in the files, and the fields that become flags."""
    names: set[str] = set()
    for file in files:
        tree = ast.parse(file.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(_FLAG, node.value):
                names.add(node.value.lstrip("-").replace("-", "_"))
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and re.fullmatch(_CLASSES, node.name):
                names |= {ast.unparse(line.target) for line in node.body if isinstance(line, ast.AnnAssign)}
    return frozenset(name for name in names if not name.startswith("_"))


def _is_argument(name: str, files: tuple[Path, ...]) -> bool:
    """Whether an argument is known. Most are flags to be found as text, which saves the time of parsing."""
    flag = f'"--{name.replace("_", "-")}"'
    return any(flag in _text(file) for file in files) or name in argument_names(files)


@cache
def _text(file: Path) -> str:
    return file.read_text()


def _package(name: str) -> Path | None:
    spec = find_spec(name)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def _check(key: str, args: Mapping[str, Any], kind: str, files: tuple[Path, ...]) -> Iterable[Problem]:
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
        elif files and not _is_argument(name, files) and not _is_argument(name.removeprefix("no_"), files):
            near = difflib.get_close_matches(name, argument_names(files), n=3, cutoff=0.6)
            hint = f"did you mean {' or '.join(f'{key}.{other}' for other in near)}?" if near else ""
            yield Problem(place, value, f"the installed {engine} has no such argument", hint)
