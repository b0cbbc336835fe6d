"""The test of a program, run where the program can't reach: it calls the program's functions as `wire.py` says.

A test passes if its code runs to its end here. The program only says what its functions give, and plain data is compared
here, by Python's own types. An object that isn't plain is a `Handle`: it can be called, looked into and iterated over, but
equals nothing but itself, and has neither order nor arithmetic. Its class can't make it equal to whatever is expected.

So a program can do no more than give right answers. What it may decide is what a test takes from it: names that neither
the test, nor its prelude, nor Python defines. A test that compares with `expected(x)` must bring that along.
"""

from __future__ import annotations

import ast
import builtins
import collections
import functools
import importlib
import sys
import types
import weakref

from . import wire

PASSED, FAILED, GONE = 0, 1, 2
"""What `judge` gives."""
FILE = "test.py"
_MOST_SAID = 2000
_ALIASES = {"np": "numpy", "pd": "pandas"}
_MODULES = getattr(sys, "stdlib_module_names", sys.builtin_module_names)
_CONTAINERS = (list, dict, set, collections.deque, str)


def judge(prelude, test, entry_point, channel):
    """Run a test; says on stderr why it didn't pass.

    Args:
        prelude: Python code that comes before it. What this defines the program can't.
        test: Python code that uses names of the program.
        entry_point: Name of what the test's function `check` gets; None: there is no such function.
        channel: A socket to the program.

    Returns:
        `PASSED`; `FAILED`: an assertion, or another exception; `GONE`: the program couldn't be loaded, or its process is
        gone, or sent what was no answer.
    """
    link = wire.Link(channel, _OPERATIONS, lambda value: _lend(link, value), lambda *said: _borrow(handles, *said))
    handles = _Handles(link)
    why = None
    try:
        _run(prelude, test, entry_point, handles)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the test didn't run to its end
        why = _explained(error, test)
    # Whatever the test made of that.
    if link.broken is not None:
        print(f"the program: {link.broken}"[:_MOST_SAID], file=sys.stderr)
        return GONE
    if why is not None:
        print(why[:_MOST_SAID], file=sys.stderr)
        return FAILED
    return PASSED


def _run(prelude, test, entry_point, handles):
    main = types.ModuleType("__main__")
    # `if __name__ == "__main__":` of a test is part of it.
    sys.modules["__main__"] = main
    space = main.__dict__
    before, tree = ast.parse(prelude, "prelude.py"), ast.parse(test, FILE)
    _execute(compile(before, "prelude.py", "exec", dont_inherit=True), space)
    names = (_used(before) | _used(tree)) - {name for name in space if name != entry_point}
    given = _given(names | {entry_point} - {None}, entry_point, handles)
    space.update(given)
    _execute(compile(tree, FILE, "exec", dont_inherit=True), space)
    check = space.get("check")
    # Not the program's, if that is what it is called.
    if not isinstance(check, types.FunctionType) or check.__globals__ is not space:
        return
    if entry_point is not None:
        if entry_point not in given:
            raise NameError(f"the program doesn't define {entry_point!r}")
        check(given[entry_point])
    elif check.__code__.co_varnames[: check.__code__.co_argcount] == ("candidate",):
        raise TypeError("the test has a function `check(candidate)`: set entry_point to the name of what it gets")


def _execute(code, space):
    try:
        exec(code, space)  # noqa: S102 - what this is for
    except SystemExit as end:
        # What `unittest.main()` ends with when all is well.
        if end.code:
            raise


def _used(tree):
    """Names that a text reads."""
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def _given(names, entry_point, handles):
    """What the program has under these names, as far as it has a say in them."""
    program = handles.borrow(0, "object")
    given = {}
    for name in sorted(names):
        ours = name in vars(builtins) or name.startswith("__")
        if ours and name != entry_point:
            continue
        try:
            value = getattr(program, name)
        except AttributeError:
            continue
        if isinstance(value, _Module):
            # Our own: it only says which one it means.
            if value.name in (name, _ALIASES.get(name)):
                given[name] = importlib.import_module(value.name)
        elif name not in _MODULES or name == entry_point:
            given[name] = value
    return given


def _explained(error, test):
    """Say what ended the test, and where."""
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    line = None
    place = error.__traceback__
    while place is not None:
        if place.tb_frame.f_code.co_filename == FILE:
            line = place.tb_lineno
        place = place.tb_next
    lines = test.splitlines()
    if line is None or line > len(lines):
        return said
    return f"{said}\nline {line} of the test: {lines[line - 1].strip()}"


class _Module:
    """A module of the program's."""

    def __init__(self, name):
        self.name = name


class _Handles:
    """What stands for the program's objects: the same for the same one, while it is in use."""

    def __init__(self, link):
        self._link = link
        self._known = weakref.WeakValueDictionary()

    def borrow(self, number, kind):
        """Give what stands for the object with that number."""
        if kind == "coroutine":
            return _coroutine(self._link, Handle(self._link, number))
        found = self._known.get(number)
        if found is None:
            found = self._known[number] = _KINDS[kind](self._link, number)
        return found


async def _coroutine(link, handle):
    return link.ask("await", handle)


class Handle:
    """An object of the program's."""

    __slots__ = ("__link", "__number", "__weakref__")

    def __init__(self, link, number):
        object.__setattr__(self, "_Handle__link", link)
        object.__setattr__(self, "_Handle__number", number)

    def __getattr__(self, name):
        # Of those that Python and its libraries look for, none is the program's to answer: numpy would follow the
        # pointer in `__array_interface__`.
        if name.startswith("__") and name != "__name__":
            raise AttributeError(name)
        return self.__link.ask("getattr", self, name)

    def __setattr__(self, name, value):
        self.__link.ask("setattr", self, name, value)

    def __delattr__(self, name):
        self.__link.ask("delattr", self, name)

    def __getitem__(self, key):
        return self.__link.ask("getitem", self, key)

    def __setitem__(self, key, value):
        self.__link.ask("setitem", self, key, value)

    def __delitem__(self, key):
        self.__link.ask("delitem", self, key)

    def __iter__(self):
        return self.__link.ask("iter", self)

    def __len__(self):
        return self.__link.ask("len", self)

    def __bool__(self):
        return self.__link.ask("bool", self)

    def __str__(self):
        return self.__link.ask("str", self)

    def __repr__(self):
        return self.__link.ask("repr", self)

    def __instancecheck__(self, value):
        return isinstance(value, Handle) and self.__link.ask("isinstance", self, value) is True

    def __enter__(self):
        return self.__link.ask("enter", self)

    def __exit__(self, kind, error, place):
        return self.__link.ask("exit", self, kind)


class _Function(Handle):
    """One that can be called."""

    __slots__ = ()

    def __call__(self, *args, **kwargs):
        return self._Handle__link.ask("call", self, *args, **kwargs)


class _Iterator(Handle):
    """One that gives one thing after another."""

    __slots__ = ()

    def __next__(self):
        return self._Handle__link.ask("next", self)


_KINDS = {"object": Handle, "function": _Function, "iterator": _Iterator}


def _lend(link, value):
    """Say what the program has to know of an object: that of a function or an iterator of the test's."""
    if isinstance(value, Handle):
        return {"yours": value._Handle__number}
    if isinstance(value, types.BuiltinFunctionType) and value.__self__ is builtins:
        # The program has its own.
        return {"builtin": value.__name__}
    if isinstance(value, types.BuiltinFunctionType) and type(value.__self__) in _CONTAINERS:
        return {"mine": [link.number(value), "function"]}
    if isinstance(value, (types.FunctionType, types.MethodType, functools.partial)):
        return {"mine": [link.number(value), "function"]}
    if hasattr(type(value), "__next__"):
        return {"mine": [link.number(value), "iterator"]}
    raise TypeError(f"the test can't give an object of the type {type(value).__name__!r} to the program")


def _borrow(handles, name, parts):
    if name == "module" and isinstance(parts, str):
        return _Module(parts)
    if name == "mine":
        number, kind = parts
        if isinstance(number, int):
            return handles.borrow(number, kind)
    raise ValueError(f"{name!r} is no kind of data")


def _call(function, /, *args, **kwargs):
    return function(*args, **kwargs)


_OPERATIONS = {"call": _call, "next": next}
