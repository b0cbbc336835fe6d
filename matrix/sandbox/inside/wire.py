"""Data between a judge and the program that it judges, as JSON that neither has to trust.

Plain data goes by value: as JSON, or as `{kind: parts}` for what JSON lacks. What isn't plain stays where it is, and
its number goes. Nothing here runs code because of what came in: no pickle, no classes but those named below, nothing of
this process but what it lent.
"""

from __future__ import annotations

import builtins
import collections
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

Data = Any
"""What `json` takes and gives."""

MOST_DEPTH = 100
"""Of data: lists in lists."""
MOST_LENT = 1_000_000
"""Objects that aren't plain."""
MOST_EXCEPTIONS = 1000
"""Classes of exceptions, which are known by name."""
_JSON_INT = 1 << 63
_AS_IS = frozenset({bool, str, float, type(None)})


class _Kind(NamedTuple):
    name: str
    parts: Callable[[Any], list[Any]]
    make: Callable[[list[Any]], Any]


def _flat(pairs: dict[Any, Any]) -> list[Any]:
    return [one for pair in pairs.items() for one in pair]


def _pairs(parts: list[Any]) -> dict[Any, Any]:
    return dict(zip(parts[::2], parts[1::2]))  # noqa: B905 - new in Python 3.10


_PLAIN: dict[type, _Kind] = {
    # Python turns no large integers into decimal text, or slowly.
    int: _Kind("int", lambda value: [hex(value)], lambda parts: int(parts[0], 16)),
    tuple: _Kind("tuple", list, tuple),
    set: _Kind("set", list, set),
    frozenset: _Kind("frozenset", list, frozenset),
    collections.deque: _Kind("deque", list, collections.deque),
    dict: _Kind("dict", _flat, _pairs),
    collections.Counter: _Kind("Counter", _flat, lambda parts: collections.Counter(_pairs(parts))),
    collections.OrderedDict: _Kind("OrderedDict", _flat, lambda parts: collections.OrderedDict(_pairs(parts))),
    bytes: _Kind("bytes", lambda value: [value.hex()], lambda parts: bytes.fromhex(*parts)),
    bytearray: _Kind("bytearray", lambda value: [value.hex()], lambda parts: bytearray.fromhex(*parts)),
    complex: _Kind("complex", lambda value: [value.real, value.imag], lambda parts: complex(*parts)),
    range: _Kind("range", lambda value: [value.start, value.stop, value.step], lambda parts: range(*parts)),
}
_MADE = {kind.name: kind.make for kind in _PLAIN.values()}

# Of modules that are imported only when something of theirs is met: what the class is called with.
_LATE: dict[tuple[str, str], Callable[[Any], list[Any]]] = {
    ("fractions", "Fraction"): lambda value: [value.numerator, value.denominator],
    ("decimal", "Decimal"): lambda value: [str(value)],
    ("datetime", "date"): lambda value: [value.year, value.month, value.day],
    ("datetime", "timedelta"): lambda value: [value.days, value.seconds, value.microseconds],
}
_LATE_MODULES = {name: module for module, name in _LATE}

# Objects of subclasses go without what those add, such as an `__eq__` of their own. The first that fits.
_EXACT: dict[type, Callable[[Any], Any]] = {
    int: int.__pos__,
    float: float.__pos__,
    str: str.__str__,
    **{kind: kind for kind in (list, tuple, collections.Counter, collections.OrderedDict, dict, set, frozenset)},
    **{kind: kind for kind in (collections.deque, bytes, bytearray, complex)},
}

# Can be made of any arguments, and end no loop of whoever gets them.
_EXCEPTIONS: dict[str, type[Exception]] = {
    name: one
    for name, one in vars(builtins).items()
    if isinstance(one, type)
    and issubclass(one, Exception)
    and name == one.__name__
    and not issubclass(one, (StopIteration, StopAsyncIteration))
    and not (issubclass(one, UnicodeError) and one is not UnicodeError)
    and not name.endswith("Group")
}
_TYPES: dict[str, type] = {
    name: one
    for name, one in vars(builtins).items()
    if isinstance(one, type) and not issubclass(one, BaseException) and not name.startswith("_")
}


class Codec:
    """Both ways of one end.

    Attributes:
        lent: What the other end may ask about, by number.
    """

    def __init__(
        self, lend: Callable[[Codec, Any], tuple[str, list[Data]]], borrow: Callable[[str, list[Any]], Any]
    ) -> None:
        """Make it.

        Args:
            lend: What to say of an object that isn't plain: kind and parts.
            borrow: Makes of what the other end's `lend` said what stands for it here.
        """
        self.lent: dict[int, Any] = {}
        self._lend = lend
        self._borrow = borrow
        self._exceptions: dict[str, type[Exception]] = {}

    def number(self, value: Any) -> int:
        """Lend something; gives its number.

        Raises:
            ValueError: That is too much.
        """
        if len(self.lent) >= MOST_LENT and id(value) not in self.lent:
            raise ValueError(f"more than {MOST_LENT} objects that aren't plain data")
        # The same object has the same number: kept here, it stays the only one with this address.
        self.lent[id(value)] = value
        return id(value)

    def encode(self, value: Any, depth: int = 0) -> Data:
        """Give what stands for a value in JSON.

        Raises:
            ValueError: It is too deep, perhaps since it contains itself.
            TypeError: It can neither be sent nor lent.
        """
        kind = type(value)
        if kind in _AS_IS or (kind is int and -_JSON_INT < value < _JSON_INT):
            return value
        if depth > MOST_DEPTH:
            raise ValueError(f"data that is more than {MOST_DEPTH} levels deep, or contains itself")
        if kind is list:
            return [self.encode(one, depth + 1) for one in value]
        plain = _PLAIN.get(kind)
        if plain is None:
            exact = _exact(value)
            if exact is not value:
                return self.encode(exact, depth)
        name, parts = self._other(value) if plain is None else (plain.name, plain.parts(value))
        return {name: [self.encode(one, depth + 1) for one in parts]}

    def decode(self, data: Data, depth: int = 0) -> Any:
        """Give back what the other end has encoded.

        Raises:
            Exception: Of any kind: it hasn't.
        """
        if depth > MOST_DEPTH + 1:
            raise ValueError(f"data that is more than {MOST_DEPTH} levels deep")
        if isinstance(data, list):
            return [self.decode(one, depth + 1) for one in data]
        if not isinstance(data, dict):
            return data
        ((name, parts),) = data.items()
        if not isinstance(parts, list):
            raise TypeError(f"{name}: no parts")
        return self._make(name, [self.decode(one, depth + 1) for one in parts])

    def names(self, kind: type) -> list[str]:
        """Say what a class of exceptions is: its name, and those of its bases up to a builtin one."""
        names: list[str] = []
        for one in kind.__mro__:
            if _EXCEPTIONS.get(one.__name__) is one:
                return [*names, one.__name__]
            # The others are of no interest: mixins.
            if issubclass(one, Exception):
                self._exceptions.setdefault(one.__name__, one)
                names.append(one.__name__)
        raise AssertionError(kind)

    def exception(self, names: list[str]) -> type[Exception]:
        """The class that these `names` say; what isn't known yet is made."""
        *ours, last = names
        found = _EXCEPTIONS[last]
        for name in reversed(ours):
            if name not in self._exceptions:
                if len(self._exceptions) >= MOST_EXCEPTIONS:
                    raise ValueError(f"more than {MOST_EXCEPTIONS} classes of exceptions")
                self._exceptions[name] = type(name, (found,), {})
            found = self._exceptions[name]
        return found

    def _other(self, value: Any) -> tuple[str, list[Any]]:
        kind = type(value)
        parts = _LATE.get((kind.__module__, kind.__name__))
        if parts is not None:
            return kind.__name__, parts(value)
        if isinstance(value, type) and _TYPES.get(value.__name__) is value:
            return "type", [value.__name__]
        if isinstance(value, type) and issubclass(value, Exception):
            return "exception", list(self.names(value))
        return self._lend(self, value)

    def _make(self, name: str, parts: list[Any]) -> Any:
        if name in _MADE:
            return _MADE[name](parts)
        if name in _LATE_MODULES:
            return getattr(importlib.import_module(_LATE_MODULES[name]), name)(*parts)
        if name == "exception":
            return self.exception(parts)
        if name in ("yours", "type"):
            (key,) = parts
            return self.lent[key] if name == "yours" else _TYPES[key]
        return self._borrow(name, parts)


def _exact(value: Any) -> Any:
    for kind, exact in _EXACT.items():
        if isinstance(value, kind):
            return exact(value)
    # Arrays, and numbers that aren't Python's.
    return value.tolist() if type(value).__module__ == "numpy" and hasattr(value, "tolist") else value
