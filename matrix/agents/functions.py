"""Python functions as tools: type hints and docstring become what a model reads of them."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic.errors import PydanticUserError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaWarningKind
from pydantic_core import PydanticSerializationError

from matrix.errors import ConfigError, Problem

_SECTION = re.compile(r"(Args|Arguments|Parameters|Returns?|Raises|Yields?|Examples?|Notes?|Attributes):\s*$")
_ARGUMENT = re.compile(r"\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s*(.*)")

_THREADS = 64
"""Calls of one synchronous tool at the same time. They are Python: more threads don't make them faster."""


class CallError(Exception):
    """A call that came to nothing; the text is for the model."""


class FunctionTool:
    """A function that a model may call. Belongs to one event loop.

    Args:
        name: What the model calls it.
        function: Synchronous or async; every parameter has a type hint that JSON can be turned into.
        use: What the config calls it, for messages.

    Attributes:
        name: As above.
        spec: The tool as OpenAI defines one.

    Raises:
        ConfigError: It is no function, or its signature can't be told to a model.
    """

    def __init__(self, name: str, function: object, use: str) -> None:
        key = f"agents.tools.{name}.use"
        if not callable(function) or inspect.isclass(function):
            hint = "def NAME(argument: type) -> type, or async def"
            raise ConfigError([Problem(key, use, "is no function", hint)])
        description, described = _documented(function)
        try:
            signature = inspect.signature(function, eval_str=True)
        except (NameError, AttributeError, TypeError) as error:
            hint = "import it for real, not only under TYPE_CHECKING"
            raise ConfigError([Problem(key, use, f"has a type hint that can't be read: {error}", hint)]) from error
        if problems := [*_unfit_parameters(signature, key, use), *_unfit_result(signature, key, use)]:
            raise ConfigError(problems)
        self.name = name
        self._function: Callable[..., Any] = function
        self._is_async = inspect.iscoroutinefunction(function)
        self._free = asyncio.Semaphore(_THREADS)
        self._names = {f"p{number}": each for number, each in enumerate(signature.parameters)}
        self._arguments = _model(signature.parameters.values(), described)
        schema = self._arguments.model_json_schema(schema_generator=_Schema)
        del schema["title"]
        self.spec: dict[str, Any] = {
            "type": "function",
            "function": {"name": name, "description": description, "parameters": schema},
        }

    async def call(self, arguments: Mapping[str, Any]) -> str:
        """Check the arguments and call the function. What it raises goes through.

        Raises:
            CallError: The arguments don't fit, or the result isn't one for JSON.
        """
        try:
            checked = self._arguments.model_validate(arguments)
        except ValidationError as error:
            found = [f"{_place(one['loc'])}{one['msg']}" for one in error.errors(include_url=False)]
            raise CallError(f"arguments of {self.name}: {'; '.join(found)}") from error
        # Only what was given: for the rest the function's own defaults hold.
        given = {
            name: getattr(checked, field) for field, name in self._names.items() if field in checked.model_fields_set
        }
        if self._is_async:
            return as_text(await self._function(**given))
        result = await self._in_thread(functools.partial(self._function, **given))
        return as_text(await result if inspect.isawaitable(result) else result)

    async def _in_thread(self, function: Callable[[], Any]) -> Any:
        """Call a function that may block in a thread of its own.

        Not in the loop's own pool: a handful of calls that hang would stop the other tools there, look-ups of names as
        well, and a process waits for that pool before it ends.
        """
        loop = asyncio.get_running_loop()
        await self._free.acquire()
        done: asyncio.Future[Any] = loop.create_future()

        def finish(result: Any, error: BaseException | None) -> None:
            self._free.release()
            if done.cancelled():
                return
            if error is None:
                done.set_result(result)
            else:
                done.set_exception(error)

        def work() -> None:
            result, failure = None, None
            try:
                result = context.run(function)
            except BaseException as error:  # noqa: BLE001 - handed over to the loop
                # A future takes no StopIteration, and sys.exit() in a tool ends the call, not the peer.
                plain = isinstance(error, Exception) and not isinstance(error, StopIteration)
                failure = error if plain else RuntimeError(f"{type(error).__name__}: {error}")
            # A loop that is gone has nobody left who waits for it.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(finish, result, failure)

        context = contextvars.copy_context()
        threading.Thread(target=work, name=f"tool {self.name}", daemon=True).start()
        return await done


def as_text(result: object) -> str:
    """What a model gets to read of a result: a text as it is, anything else as JSON.

    Raises:
        CallError: JSON has no form for it.
    """
    if isinstance(result, str):
        return result
    try:
        return pydantic_core.to_json(result).decode()
    except (PydanticSerializationError, ValueError) as error:
        raise CallError(f"the tool gave a {type(result).__name__} that JSON can't hold") from error


class _Schema(GenerateJsonSchema):
    """Without a title for every field: they repeat its name, and a model pays for them."""

    # A default that JSON can't hold isn't shown; the function has it all the same.
    ignored_warning_kinds: set[JsonSchemaWarningKind] = {"skipped-choice", "non-serializable-default"}

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - as pydantic has it
        return False


def _model(parameters: Iterable[inspect.Parameter], described: Mapping[str, str]) -> type[BaseModel]:
    """A model of the arguments. Its fields have names of ours: pydantic keeps some, such as `schema`, for itself."""
    fields: dict[str, Any] = {}
    for number, each in enumerate(parameters):
        default = ... if each.default is each.empty else each.default
        about: dict[str, Any] = {"description": described[each.name]} if each.name in described else {}
        fields[f"p{number}"] = (each.annotation, Field(default, alias=each.name, **about))
    return create_model("Arguments", __config__=ConfigDict(extra="forbid", arbitrary_types_allowed=False), **fields)


def _unfit_parameters(signature: inspect.Signature, key: str, use: str) -> list[Problem]:
    problems = []
    for each in signature.parameters.values():
        if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
            stars = "*" if each.kind is each.VAR_POSITIONAL else "**"
            problems.append(
                Problem(key, use, f"takes {stars}{each.name}", "name each argument: a model sees no others")
            )
        elif each.kind is each.POSITIONAL_ONLY:
            problems.append(Problem(key, use, f"takes {each.name} by its place only", "arguments come by name"))
        elif each.annotation is each.empty:
            problems.append(Problem(key, use, f"{each.name} has no type hint", f"{each.name}: str, for instance"))
        else:
            try:
                _model([each], {}).model_json_schema(schema_generator=_Schema)
            except PydanticUserError:
                hint = "types that JSON has a form for: str, int, list[...], Literal, a pydantic model, ..."
                problems.append(
                    Problem(key, use, f"{each.name} is a {_shown(each.annotation)}, no type for JSON", hint)
                )
    return problems


def _unfit_result(signature: inspect.Signature, key: str, use: str) -> list[Problem]:
    given = signature.return_annotation
    if given is signature.empty or given is None:
        return []
    mode: JsonSchemaMode = "serialization"
    try:
        TypeAdapter(given).json_schema(mode=mode, schema_generator=_Schema)
    except PydanticUserError:
        hint = "return a text, or what JSON has a form for"
        return [Problem(key, use, f"gives a {_shown(given)}, no type for JSON", hint)]
    return []


def _shown(annotation: Any) -> str:
    return annotation.__name__ if inspect.isclass(annotation) else str(annotation)


def _place(location: tuple[int | str, ...]) -> str:
    return f"{'.'.join(map(str, location))}: " if location else ""


def _documented(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The first paragraph of a docstring, and what its `Args:` say of each parameter."""
    lines = (inspect.getdoc(function) or "").splitlines()
    first = next((number for number, line in enumerate(lines) if not line.strip() or _SECTION.match(line)), len(lines))
    described: dict[str, str] = {}
    section, name, indent = "", "", 0
    for line in lines[first:]:
        if match := _SECTION.match(line):
            section, name, indent = match[1], "", 0
            continue
        if section not in ("Args", "Arguments", "Parameters") or not line.strip():
            continue
        depth = len(line) - len(line.lstrip())
        indent = indent or depth
        if depth <= indent and (found := _ARGUMENT.match(line.strip())):
            name = found[1]
            described[name] = found[2].strip()
        elif name:
            described[name] = f"{described[name]} {line.strip()}".strip()
    return " ".join(line.strip() for line in lines[:first]), described
