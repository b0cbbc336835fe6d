"""The program that is judged: runs it, and then calls its functions for the judge."""

from __future__ import annotations

import builtins
import linecache
import operator
import socket
import sys
from collections.abc import Callable, Iterator
from types import CoroutineType, FunctionType, ModuleType
from typing import Any

from .link import Gone, Link
from .wire import Codec

NAME = "solution"
"""Of its module: not `__main__`, so that what a program does when it is started isn't done."""
_MOST_SAID = 2000


def serve(code: str, channel: socket.socket) -> None:
    """Run a program's text, and then what the judge asks of it, until the judge is gone.

    Args:
        code: Its text.
        channel: A socket to the judge.

    Raises:
        BaseException: What the text raised; the judge knows.
    """
    module = ModuleType(NAME)
    # Where `dataclasses` and `pickle` look.
    sys.modules[NAME] = module
    codec = Codec(_lend, lambda kind, parts: _borrow(link, kind, parts))
    link = Link(channel, _OPERATIONS, codec)
    file = f"{NAME}.py"
    # So that tracebacks show lines.
    linecache.cache[file] = (len(code), None, code.splitlines(keepends=True), file)
    try:
        exec(compile(code, file, "exec", dont_inherit=True), module.__dict__)
    except BaseException as error:
        link.fail(f"{type(error).__name__}: {error}"[:_MOST_SAID])
        raise
    codec.lent[0] = module
    try:
        link.serve()
    except Gone:
        return


def _lend(codec: Codec, value: Any) -> tuple[str, list[Any]]:
    """Say what the judge has to know of an object, so that what stands for it there can do the same."""
    if isinstance(value, _Pulled):
        return "yours", [value.number]
    if isinstance(value, FunctionType) and _NUMBER in value.__dict__:
        return "yours", [value.__dict__[_NUMBER]]
    if isinstance(value, ModuleType):
        return "module", [value.__name__]
    if isinstance(value, CoroutineType):
        kind = "coroutine"
    elif hasattr(type(value), "__next__"):
        kind = "iterator"
    else:
        kind = "function" if callable(value) else "object"
    return "mine", [codec.number(value), kind]


def _borrow(link: Link, name: str, parts: list[Any]) -> Any:
    """Make what stands for something of the judge's."""
    if name == "builtin":
        return getattr(builtins, parts[0])
    number, kind = parts
    return _Pulled(link, number) if kind == "iterator" else _called(link, number)


_NUMBER = "__lent_by_the_judge__"


def _called(link: Link, number: int) -> Callable[..., Any]:
    def of_the_judge(*args: Any, **kwargs: Any) -> Any:
        return link.ask("call", of_the_judge, *args, **kwargs)

    of_the_judge.__dict__[_NUMBER] = number
    return of_the_judge


class _Pulled:
    """An iterator of the judge's."""

    def __init__(self, link: Link, number: int) -> None:
        self.number = number
        self._link = link

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._link.ask("next", self)


def _call(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


def _awaited(coroutine: CoroutineType[Any, Any, Any]) -> Any:
    # Slow to import, and seldom met.
    import asyncio

    return asyncio.run(coroutine)


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": _call,
    "getattr": getattr,
    "setattr": setattr,
    "delattr": delattr,
    "getitem": operator.getitem,
    "setitem": operator.setitem,
    "delitem": operator.delitem,
    "iter": iter,
    "next": next,
    "await": _awaited,
    "len": len,
    "bool": bool,
    "str": str,
    "repr": repr,
    "isinstance": lambda kind, value: isinstance(value, kind),
    "enter": lambda manager: manager.__enter__(),
    "exit": lambda manager, kind: manager.__exit__(kind, None, None),
}
