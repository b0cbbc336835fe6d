"""The test of a program, run where the program can't reach: it only calls the program's functions.

A test passes if its code runs to its end here. The program says what its functions give, and plain data is compared
here, by Python's own types. An object that isn't plain is a `Handle`: it can be called, looked into and iterated over,
but equals nothing but itself, and has neither order nor arithmetic. Its class can't make it equal to whatever is
expected.

So a program can do no more than give answers. What it decides is what a test takes from it: names that neither the
test, nor its prelude, nor Python defines. A test that compares with `expected(x)` has to bring that along.
"""

from __future__ import annotations

import ast
import builtins
import collections
import functools
import importlib
import socket
import sys
import weakref
from collections.abc import Callable
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from .link import Link
from .wire import Codec

PASSED, FAILED, GONE = 0, 1, 2
"""What `judge` gives."""
FILE = "test.py"
_MOST_SAID = 2000
_ALIASES = {"np": "numpy", "pd": "pandas"}
_MODULES = getattr(sys, "stdlib_module_names", sys.builtin_module_names)
_CONTAINERS = (list, dict, set, collections.deque, str)


def judge(prelude: str, test: str, entry_point: str | None, channel: socket.socket) -> int:
    """Run a test; says on stderr why it didn't pass.

    Args:
        prelude: Python code that comes before it. What this defines isn't taken from the program.
        test: Python code that uses names of the program.
        entry_point: Name of what the test's function `check` gets; None: there is no such function.
        channel: A socket to the program.

    Returns:
        `PASSED`; `FAILED`: an assertion, or another exception; `GONE`: the program couldn't be loaded, or its process
        is gone, or sent what was no answer.
    """
    program = _Program(channel)
    code, why = PASSED, ""
    try:
        _run(prelude, test, entry_point, program)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the test didn't run to its end
        code, why = FAILED, _explained(error, test)
    # Whatever the test made of these.
    if program.failure is not None:
        code, why = FAILED, _explained(program.failure, test)
    if program.link.broken is not None:
        code, why = GONE, f"the program: {program.link.broken}"
    if why:
        print(why[:_MOST_SAID], file=sys.__stderr__)
    return code


def _run(prelude: str, test: str, entry_point: str | None, program: _Program) -> None:
    # `if __name__ == "__main__":` of a test is part of it.
    main = sys.modules["__main__"] = ModuleType("__main__")
    space = main.__dict__
    before, tree = ast.parse(prelude, "prelude.py"), ast.parse(test, FILE)
    _execute(_compiled(before, "prelude.py"), space)
    names = (_read(before) | _read(tree) | {entry_point}) - (space.keys() - {entry_point}) - {None}
    given = {name: value for name in names if name for value in _given(name, name == entry_point, program)}
    space.update(given)
    _execute(_compiled(tree, FILE), space)
    check = space.get("check")
    # Not the program's, if it has one of that name.
    if not isinstance(check, FunctionType) or check.__globals__ is not space:
        return
    if entry_point is not None:
        if entry_point not in given:
            raise NameError(f"the program doesn't define {entry_point!r}")
        check(given[entry_point])
    elif check.__code__.co_varnames[: check.__code__.co_argcount] == ("candidate",):
        raise TypeError("the test has a function check(candidate): set entry_point to the name of what it gets")


def _compiled(tree: ast.Module, file: str) -> CodeType:
    return compile(tree, file, "exec", dont_inherit=True, optimize=0)


def _execute(code: CodeType, space: dict[str, Any]) -> None:
    try:
        exec(code, space)
    except SystemExit as end:
        # What `unittest.main()` ends with when all is well: False.
        if end.code not in (None, 0):
            raise


def _read(tree: ast.Module) -> set[str | None]:
    """Names that a text reads."""
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def _given(name: str, asked: bool, program: _Program) -> list[Any]:
    """What the program has under a name, as far as it has a say in it: one thing, or nothing."""
    if not asked and (name in vars(builtins) or name.startswith("__")):
        return []
    try:
        value = getattr(program.module, name)
    except AttributeError:
        return []
    if isinstance(value, _Module):
        # Our own; it only says which.
        return [importlib.import_module(value.name)] if value.name in (name, _ALIASES.get(name)) else []
    return [value] if asked or name not in _MODULES else []


def _explained(error: BaseException, test: str) -> str:
    """Say what ended the test, and where."""
    said = type(error).__name__
    # Others may be asked of the program.
    if all(isinstance(one, (str, int, float)) for one in error.args) and str(error):
        said += f": {error}"
    if type(error) is SyntaxError and isinstance(error.msg, str) and isinstance(error.lineno, int):
        return f"SyntaxError: {error.msg} (line {error.lineno} of {error.filename})"
    line = None
    place = error.__traceback__
    while place is not None:
        if place.tb_frame.f_code.co_filename == FILE:
            line = place.tb_lineno
        place = place.tb_next
    lines = test.splitlines()
    return said if line is None or line > len(lines) else f"{said}\nline {line} of the test: {lines[line - 1].strip()}"


class _Program:
    """What is judged.

    Attributes:
        link: To it.
        module: Stands for all that it defines.
        failure: The first assertion of the test that failed in a function that the program called.
    """

    def __init__(self, channel: socket.socket) -> None:
        self.link = Link(channel, {"call": self._call, "next": next}, Codec(_lend, self._borrow))
        self.failure: AssertionError | None = None
        # The same object has the same handle, while that is in use.
        self._handles: weakref.WeakValueDictionary[int, Handle] = weakref.WeakValueDictionary()
        self.module = Handle(self.link, 0)

    def _borrow(self, name: str, parts: list[Any]) -> Any:
        if name == "module":
            return _Module(*parts)
        if name != "mine":
            raise ValueError(f"{name!r} is no kind of data")
        number, kind = parts
        if kind == "coroutine":
            return _coroutine(self.link, Handle(self.link, number))
        found = self._handles.get(number)
        if found is None:
            found = self._handles[number] = _HANDLES[kind](self.link, number)
        return found

    def _call(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except AssertionError as error:
            # The program could swallow it.
            self.failure = self.failure or error
            raise


async def _coroutine(link: Link, handle: Handle) -> Any:
    return link.ask("await", handle)


class _Module:
    """A module of the program's."""

    def __init__(self, name: str) -> None:
        self.name = name


class Handle:
    """An object of the program's."""

    __slots__ = ("__weakref__", "matrix_link", "matrix_number")

    def __init__(self, link: Link, number: int) -> None:
        object.__setattr__(self, "matrix_link", link)
        object.__setattr__(self, "matrix_number", number)

    def __getattr__(self, name: str) -> Any:
        # What Python and its libraries look for isn't the program's to answer: numpy would follow the pointer in
        # `__array_interface__`.
        if name.startswith("__") and name != "__name__":
            raise AttributeError(name)
        return _ask("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        _ask("setattr", self, name, value)

    def __delattr__(self, name: str) -> None:
        _ask("delattr", self, name)

    def __getitem__(self, key: Any) -> Any:
        return _ask("getitem", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        _ask("setitem", self, key, value)

    def __delitem__(self, key: Any) -> None:
        _ask("delitem", self, key)

    def __iter__(self) -> Any:
        return _ask("iter", self)

    def __len__(self) -> Any:
        return _ask("len", self)

    def __bool__(self) -> Any:
        return _ask("bool", self)

    def __str__(self) -> Any:
        return _ask("str", self)

    def __repr__(self) -> Any:
        return _ask("repr", self)

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, Handle) and _ask("isinstance", self, value) is True

    def __enter__(self) -> Any:
        return _ask("enter", self)

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        # It can't swallow an assertion: what it gives is nothing to us.
        _ask("exit", self, kind if kind is None or issubclass(kind, Exception) else None)


class _Function(Handle):
    """One that can be called."""

    __slots__ = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _ask("call", self, *args, **kwargs)


class _Iterator(Handle):
    """One that gives one thing after another."""

    __slots__ = ()

    def __next__(self) -> Any:
        return _ask("next", self)


_HANDLES = {"object": Handle, "function": _Function, "iterator": _Iterator}


def _ask(operation: str, handle: Handle, /, *args: Any, **kwargs: Any) -> Any:
    return handle.matrix_link.ask(operation, handle, *args, **kwargs)


def _lend(codec: Codec, value: Any) -> tuple[str, list[Any]]:
    """Say what the program has to know of an object: it may call functions of the test's, and iterate."""
    if isinstance(value, Handle):
        return "yours", [value.matrix_number]
    if isinstance(value, BuiltinFunctionType) and value.__self__ is builtins:
        # It has its own.
        return "builtin", [value.__name__]
    if isinstance(value, (FunctionType, MethodType, functools.partial)):
        return "mine", [codec.number(value), "function"]
    if isinstance(value, BuiltinFunctionType) and type(value.__self__) in _CONTAINERS:
        return "mine", [codec.number(value), "function"]
    if hasattr(type(value), "__next__"):
        return "mine", [codec.number(value), "iterator"]
    raise TypeError(f"the test can't give an object of the type {type(value).__name__!r} to the program")
