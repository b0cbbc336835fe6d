"""The program that is judged: runs it, and then calls its functions for the judge, as `wire.py` says."""

from __future__ import annotations

import builtins
import operator
import sys
import types

from . import wire

NAME = "solution"
"""Of its module: not `__main__`, so that what a program does when it is started isn't done."""

_MOST_SAID = 2000


def serve(code, channel):
    """Run a program's text, and then what the judge asks of it, until the judge is gone.

    Args:
        code: Its text.
        channel: A socket to the judge.

    Raises:
        BaseException: What the text raised; the judge knows.
    """
    module = types.ModuleType(NAME)
    # Where `dataclasses` and `pickle` look.
    sys.modules[NAME] = module
    link = wire.Link(channel, _OPERATIONS, lambda value: _lend(link, value), lambda *said: _borrow(link, *said))
    try:
        exec(_compiled(code), module.__dict__)  # noqa: S102 - what this is for
    except BaseException as error:
        link.say("failed", f"{type(error).__name__}: {error}"[:_MOST_SAID])
        raise
    link.lent[0] = module
    try:
        link.serve()
    except wire.Gone:
        return


def _compiled(code):
    import linecache

    # So that tracebacks show lines.
    file = f"{NAME}.py"
    linecache.cache[file] = (len(code), None, code.splitlines(True), file)
    return compile(code, file, "exec", dont_inherit=True)


def _lend(link, value):
    """Say what the judge has to know of an object, so that what stands for it there can do the same."""
    number = getattr(value, "lent_by_judge", None) if type(value) in (types.FunctionType, _Pulled) else None
    if number is not None:
        return {"yours": number}
    if isinstance(value, types.ModuleType):
        return {"module": value.__name__}
    if isinstance(value, types.CoroutineType):
        kind = "coroutine"
    elif hasattr(type(value), "__next__"):
        kind = "iterator"
    else:
        kind = "function" if callable(value) else "object"
    return {"mine": [link.number(value), kind]}


def _borrow(link, name, parts):
    """Make what stands for something of the judge's: a function or an iterator."""
    if name == "builtin":
        return getattr(builtins, parts)
    number, kind = parts
    if kind == "iterator":
        return _Pulled(link, number)

    def of_the_judge(*args, **kwargs):
        return link.ask("call", of_the_judge, *args, **kwargs)

    of_the_judge.lent_by_judge = number
    return of_the_judge


class _Pulled:
    """An iterator of the judge's."""

    def __init__(self, link, number):
        self.lent_by_judge = number
        self._link = link

    def __iter__(self):
        return self

    def __next__(self):
        return self._link.ask("next", self)


def _call(function, /, *args, **kwargs):
    return function(*args, **kwargs)


def _awaited(coroutine):
    import asyncio

    return asyncio.run(coroutine)


_OPERATIONS = {
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
