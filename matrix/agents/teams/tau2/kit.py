"""Tools of a domain: methods that a model may call, described to it by their types and docstrings."""

from __future__ import annotations

import inspect
import json
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

from matrix.agents.teams.tau2.database import Database, Record

Requestor: TypeAlias = Literal["assistant", "user"]
Method = TypeVar("Method", bound=Callable[..., Any])

_SCHEMAS = {str: "string", int: "integer", float: "number", bool: "boolean"}
_EFFECT = "__tau2_tool__"


class ToolError(Exception):
    """A tool refuses; the message is for the model that called it."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a model gets back.

    Attributes:
        content: The result as text, or `Error: ...`.
        error: Whether it is an error.
    """

    content: str
    error: bool = False


def reads(method: Method) -> Method:
    """Mark a method as a tool that leaves the database as it is."""
    setattr(method, _EFFECT, "read")
    return method


def writes(method: Method) -> Method:
    """Mark a method as a tool that may change the database."""
    setattr(method, _EFFECT, "write")
    return method


class Toolkit:
    """The tools of one side. Methods without a mark serve tasks: how they begin, and what they assert at the end.

    A method raises ToolError before it changes anything, so that a call that fails has no effect.

    Attributes:
        tables: Tables that the domain's database has to have.
    """

    tables: ClassVar[tuple[str, ...]] = ()

    def __init__(self, db: Database) -> None:
        self.db = db

    @classmethod
    def whole(cls, table: str, record: Record) -> Record:
        """A record as the file has it, with all fields that such a record may have, since tools show them."""
        del table
        return record

    @classmethod
    def names(cls) -> list[str]:
        """Names of the tools."""
        return [name for one in reversed(cls.mro()) for name in vars(one) if cls.has(name)]

    @classmethod
    def has(cls, name: str) -> bool:
        """Whether there is a tool of that name."""
        return hasattr(getattr(cls, name, None), _EFFECT)

    @classmethod
    def is_write(cls, name: str) -> bool:
        """Whether it is a tool that may change the database."""
        return getattr(getattr(cls, name, None), _EFFECT, None) == "write"

    @classmethod
    def specs(cls) -> list[dict[str, Any]]:
        """The tools as OpenAI defines them."""
        return [_spec(getattr(cls, name)) for name in cls.names()]

    def call(self, name: str, arguments: object) -> Result:
        """Call a tool as a model asks for it.

        Args:
            name: Of the tool, as the model wrote it.
            arguments: JSON text of an object, or the object.
        """
        if not self.has(name):
            return Result(f"Error: Tool '{name}' not found.", error=True)
        try:
            result = self.function(name, parsed(arguments))
        except ToolError as error:
            return Result(f"Error: {error}", error=True)
        return Result(result if isinstance(result, str) else json.dumps(result))

    def function(self, name: str, arguments: Mapping[str, Any]) -> Any:
        """Call any method, tool or not.

        Raises:
            ToolError: There is none, the arguments don't fit, or it refuses.
        """
        method = None if name.startswith("_") or hasattr(Toolkit, name) else getattr(self, name, None)
        if not callable(method):
            raise ToolError(f"Function '{name}' not found.")
        parameters = _parameters(getattr(type(self), name))
        for given in arguments:
            if given not in parameters:
                raise ToolError(f"{name} has no argument '{given}'.")
        for one, (kind, default) in parameters.items():
            if one not in arguments and default is inspect.Parameter.empty:
                raise ToolError(f"{name} needs the argument '{one}'.")
            if one in arguments and not _fits(arguments[one], kind):
                raise ToolError(f"The argument '{one}' of {name} should be {_words(kind)}, not {arguments[one]!r:.80}.")
        return method(**arguments)


def parsed(arguments: object) -> dict[str, Any]:
    """Arguments of a call as an object.

    Raises:
        ToolError: They are none.
    """
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise ToolError(f"The arguments are not JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise ToolError(f"The arguments should be a JSON object, not {arguments!r:.80}.")
    return arguments


@cache
def _parameters(method: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Type and default of each argument."""
    hints = get_type_hints(method)
    found = list(inspect.signature(method).parameters.values())[1:]
    return {one.name: (hints[one.name], one.default) for one in found}


@cache
def _spec(method: Callable[..., Any]) -> dict[str, Any]:
    text, _, after = inspect.cleandoc(method.__doc__ or "").partition("\nArgs:\n")
    about = dict(re.findall(r"^    (\w+): (.+)$", after, re.MULTILINE))
    parameters = _parameters(method)
    schema = {
        "type": "object",
        "properties": {name: {**_schema(kind), "description": about[name]} for name, (kind, _) in parameters.items()},
        "required": [name for name, (_, default) in parameters.items() if default is inspect.Parameter.empty],
    }
    function = {"name": method.__name__, "description": " ".join(text.split()), "parameters": schema}
    return {"type": "function", "function": function}


def _schema(kind: Any) -> dict[str, Any]:
    if get_origin(kind) is Literal:
        return {"type": "string", "enum": list(get_args(kind))}
    if get_origin(kind) is list:
        return {"type": "array", "items": _schema(get_args(kind)[0])}
    if get_origin(kind) in (Union, types.UnionType):
        return _schema(get_args(kind)[0])
    return {"type": _SCHEMAS[kind]}


def _fits(value: object, kind: Any) -> bool:
    # tau2 shows a model the values that it may choose, and takes any.
    if get_origin(kind) is Literal:
        return isinstance(value, str)
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_fits(item, get_args(kind)[0]) for item in value)
    if get_origin(kind) in (Union, types.UnionType):
        return any(_fits(value, one) for one in get_args(kind))
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _words(kind: Any) -> str:
    if get_origin(kind) is list:
        return f"a list of {_words(get_args(kind)[0])}"
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(_words(one) for one in get_args(kind))
    return {str: "text", int: "a whole number", float: "a number", bool: "true or false"}.get(
        kind, "null" if kind is type(None) else "text"
    )
