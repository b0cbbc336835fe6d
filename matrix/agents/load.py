"""Roles, tools and graphs by name: `module:name`, or a name in `agents.file`."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from pydantic import ConfigDict, ValidationError, create_model

from matrix.agents.role import Act, Role
from matrix.errors import ConfigError, MatrixError, Problem, did_you_mean
from matrix.pipelines.prompt import shortened
from matrix.spec.agents import RoleSpec

KEPT_FILE = "agents.py"
"""Copy of `agents.file` in the run dir."""


class Loader:
    """Finds what a team's config names.

    Args:
        file: The team's own file, if it has one.
        modules: Packages that may be imported, beside matrix.
    """

    def __init__(self, file: str | Path | None, modules: Sequence[str] = ()) -> None:
        self._file = Path(file).expanduser().resolve() if file is not None else None
        self._allowed = ("matrix", *modules)

    def find(self, use: str, key: str) -> Any:
        """The object.

        Args:
            use: `module:name`, or a name in the file.
            key: The config key that says so; errors name it.

        Raises:
            ConfigError: There is no such thing, or it mustn't be imported.
        """
        module_name, colon, name = use.rpartition(":")
        if not colon:
            if self._file is None:
                hint = "module:name, or a file: agents.file=FILE"
                raise ConfigError([Problem(key, use, "is in no module and there is no agents.file", hint)])
            module = _load_file(self._file)
        else:
            if not any(module_name == one or module_name.startswith(f"{one}.") for one in self._allowed):
                package = module_name.partition(".")[0]
                hint = f"agents.modules=[{package}]"
                raise ConfigError([Problem(key, use, f"{package} isn't among agents.modules", hint)])
            module = _import(module_name, key, use)
        if not hasattr(module, name):
            names = [name for name in vars(module) if not name.startswith("_")]
            where = self._file or module_name
            raise ConfigError([Problem(key, use, f"{where} has no {name}", did_you_mean(name, names))])
        return getattr(module, name)

    def role(self, name: str, spec: RoleSpec) -> Act | Role:
        """Make a role.

        Raises:
            ConfigError: It isn't one, its options don't fit, or its class fails.
        """
        found, options = self.check_role(name, spec)
        if not inspect.isclass(found):
            return cast("Act", found)
        try:
            return cast("Role", found(**options))
        except MatrixError as error:
            raise ConfigError([Problem(f"agents.roles.{name}.options", None, str(error))]) from error
        except (Exception, SystemExit) as error:
            line = next((f", line {frame.tb_lineno}" for frame in _frames(error, self._file)), "")
            message = f"can't be made: {type(error).__name__}: {error}{line}"
            raise ConfigError([Problem(f"agents.roles.{name}.use", spec.use or name, message)]) from error

    def check_role(self, name: str, spec: RoleSpec) -> tuple[Any, dict[str, Any]]:
        """Find a role's function, or its class and the options for it, which may take minutes to make one of.

        Raises:
            ConfigError: It isn't one, or its options don't fit.
        """
        key = f"agents.roles.{name}"
        found: Any = self.find(spec.use or name, f"{key}.use")
        use = spec.use or name
        if inspect.isclass(found):
            if not inspect.iscoroutinefunction(getattr(found, "act", None)):
                hint = "async def act(self, state, tools)"
                raise ConfigError([Problem(f"{key}.use", use, "is a class without an async method `act`", hint)])
            if abstract := getattr(found, "__abstractmethods__", None):
                missing = ", ".join(sorted(abstract))
                raise ConfigError([Problem(f"{key}.use", use, f"lacks {missing}", "define it")])
            return found, _options(found, spec.options, f"{key}.options")
        if not inspect.iscoroutinefunction(found):
            hint = "async def NAME(state, tools), or a class with async def act(self, state, tools)"
            raise ConfigError([Problem(f"{key}.use", use, "is neither an async function nor a class", hint)])
        if len(inspect.signature(found).parameters) != 2:
            raise ConfigError(
                [Problem(f"{key}.use", use, "doesn't take (state, tools)", "async def NAME(state, tools)")]
            )
        if spec.options:
            hint = "make it a class whose __init__ takes them"
            raise ConfigError([Problem(f"{key}.options", spec.options, "a function takes no options", hint)])
        return found, {}


def _options(role: type, options: dict[str, Any], key: str) -> dict[str, Any]:
    """The options as the class declares them."""
    try:
        signature = inspect.signature(role, eval_str=True)
    except (NameError, AttributeError, TypeError) as error:
        hint = "import it for real, not only under TYPE_CHECKING"
        raise ConfigError(
            [Problem(key, None, f"{role.__name__} has a type hint that can't be read: {error}", hint)]
        ) from error
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = [one for one in signature.parameters.values() if one.kind in kinds]
    problems = [
        Problem(f"{key}.{name}", options[name], "no such option", did_you_mean(name, [one.name for one in parameters]))
        for name in options
        if name not in {one.name for one in parameters}
    ]
    if problems and not parameters:
        problems = [Problem(key, options, f"{role.__name__} takes no options", "leave them out")]
    fields: dict[str, Any] = {
        one.name: (
            Any if one.annotation is one.empty else one.annotation,
            ... if one.default is one.empty else one.default,
        )
        for one in parameters
    }
    model = create_model(role.__name__, __config__=ConfigDict(extra="ignore", arbitrary_types_allowed=True), **fields)
    try:
        checked = model.model_validate(options)
    except ValidationError as error:
        for detail in error.errors():
            message = detail["msg"].replace("Input should", "should").replace("Field required", "is missing")
            value = None if detail["type"] == "missing" else shortened(repr(detail["input"]))
            problems.append(Problem(".".join([key, *map(str, detail["loc"])]), value, message))
    if problems:
        raise ConfigError(problems)
    return {name: getattr(checked, name) for name in checked.model_fields_set}


def _import(module: str, key: str, use: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        hint = "is it installed, or on PYTHONPATH?"
        raise ConfigError([Problem(key, use, f"{module} can't be imported: {error}", hint)]) from error


@lru_cache(maxsize=8)
def _load_file(file: Path) -> ModuleType:
    """Run a file as a module, once in a process.

    Raises:
        ConfigError: It isn't there, or fails.
    """
    if not file.is_file():
        raise ConfigError([Problem("agents.file", file, "no such file", "a Python file with the team's roles")])
    name = f"matrix_agents_{blake2b(str(file).encode(), digest_size=4).hexdigest()}"
    found = importlib.util.spec_from_file_location(name, file)
    if found is None or found.loader is None:
        raise ConfigError([Problem("agents.file", file, "is no Python file", "its name should end in .py")])
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    try:
        found.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        line = next((f", line {frame.tb_lineno}" for frame in _frames(error, file)), "")
        raise ConfigError(
            [Problem("agents.file", file, f"fails with {type(error).__name__}: {error}{line}")]
        ) from error
    return module


def _frames(error: BaseException, file: Path | None) -> list[Any]:
    """Where in the file it happened, the innermost first."""
    found, frame = [], error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == str(file):
            found.append(frame)
        frame = frame.tb_next
    return found[::-1]
