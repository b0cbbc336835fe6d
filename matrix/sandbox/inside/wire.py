"""What a judge and the program that it judges say to each other: calls, and plain data as JSON. Standard library only.

Both ends do the same: ask the other for something, and answer what it asks meanwhile. Plain data goes by value: JSON, with
`{kind: parts}` for what JSON lacks. What isn't plain stays where it is, and its number goes.

The program's end may send anything at all. So nothing here runs code because of what came in: no pickle, no class but those
of `_PLAIN` and `_LATE`, nothing of this process but what it lent. A message that can't be understood breaks the link, for
good.
"""

from __future__ import annotations

import builtins
import collections
import importlib
import json
import operator
import struct
import threading

MOST_BYTES = 16 << 20
"""Of a message."""
MOST_BYTES_IN_ALL = 256 << 20
MOST_DEPTH = 100
"""Of data: lists in lists."""
MOST_NESTED = 40
"""Calls that wait for each other: of a function that calls a function that it was given, and so on."""
MOST_LENT = 1_000_000
"""Objects that aren't plain."""
MOST_EXCEPTIONS = 1000
"""Classes of exceptions, that are known by name."""
_JSON_INT = 1 << 63

# Kind: its name, its parts, and how it is made of them.
_PLAIN = {
    tuple: ("tuple", list, tuple),
    set: ("set", list, set),
    frozenset: ("frozenset", list, frozenset),
    collections.deque: ("deque", list, collections.deque),
    # Before dict, of which they are: the first that fits is taken.
    collections.Counter: ("Counter", lambda value: _flat(value), lambda parts: collections.Counter(_pairs(parts))),
    collections.OrderedDict: (
        "OrderedDict",
        lambda value: _flat(value),
        lambda parts: collections.OrderedDict(_pairs(parts)),
    ),
    dict: ("dict", lambda value: _flat(value), lambda parts: _pairs(parts)),
    bytes: ("bytes", lambda value: [value.hex()], lambda parts: bytes.fromhex(*parts)),
    bytearray: ("bytearray", lambda value: [value.hex()], lambda parts: bytearray.fromhex(*parts)),
    complex: ("complex", lambda value: [value.real, value.imag], lambda parts: complex(*parts)),
    range: ("range", lambda value: [value.start, value.stop, value.step], lambda parts: range(*parts)),
}
_MADE = {name: make for name, _, make in _PLAIN.values()}

# The same for modules that are imported only when they are met.
_LATE = {
    ("fractions", "Fraction"): lambda value: [value.numerator, value.denominator],
    ("decimal", "Decimal"): lambda value: [str(value)],
    ("datetime", "date"): lambda value: [value.year, value.month, value.day],
    ("datetime", "timedelta"): lambda value: [value.days, value.seconds, value.microseconds],
}
_LATE_MODULES = {name: module for module, name in _LATE}

# Can be made of any arguments, and end no loop of whoever gets them.
_EXCEPTIONS = {
    name: one
    for name, one in vars(builtins).items()
    if isinstance(one, type)
    and issubclass(one, Exception)
    and name == one.__name__
    and not issubclass(one, (StopIteration, StopAsyncIteration))
    and not (issubclass(one, UnicodeError) and one is not UnicodeError)
    and "Group" not in name
}
_TYPES = {
    name: one
    for name, one in vars(builtins).items()
    if isinstance(one, type) and not issubclass(one, BaseException) and not name.startswith("_")
}

# Of subclasses: what they are without what they add, such as an `__eq__` of their own.
_EXACT = {int: int.__pos__, float: float.__pos__, str: str.__str__, list: list.copy}
_REFERENCES = {"yours", "mine", "type", "exception", "builtin"}


class Gone(BaseException):
    """The other end is, or says what can't be understood."""


class Link:
    """One end.

    Attributes:
        broken: Why nothing can be asked any more; None while it can.
        lent: What the other end may ask about, by number.
        exceptions: Classes of exceptions that aren't builtins, by name.
    """

    def __init__(self, channel, operations, lend, borrow):
        """Make it.

        Args:
            channel: A socket to the other end.
            operations: Functions that the other end may ask for, by name; the first argument is something `lent`.
            lend: What to say of an object that isn't plain: `{kind: parts}`.
            borrow: Makes of what the other end's `lend` said what stands for it here.
        """
        self.broken = None
        self.lent = {}
        self.exceptions = {}
        self._channel = channel
        self._operations = operations
        self._lend = lend
        self._borrow = borrow
        self._received = 0
        self._nested = 0
        # A thread may ask while another does.
        self._lock = threading.RLock()

    def ask(self, operation, *args, **kwargs):
        """Have the other end do something; gives or raises what came of it.

        Raises:
            Gone: Nobody answers.
            StopIteration: Of `next` only.
        """
        with self._lock:
            request = ["do", operation, self.encode(list(args)), self.encode(kwargs)]
            if self._nested >= MOST_NESTED:
                raise RecursionError("the test and the program call each other too deeply")
            body = self._body(request)
            self._nested += 1
            done = False
            try:
                self._check()
                self._send(body)
                answer = self._receive()
                while answer[0] == "do":
                    self._send(self._answer(*answer[1:]))
                    answer = self._receive()
                done = True
            finally:
                self._nested -= 1
                # Whose answer the next one is, nobody knows.
                if not done:
                    self.broken = self.broken or "a call was given up"
            return self._outcome(operation, [*args, kwargs], answer)

    def serve(self):
        """Answer until the other end is gone."""
        while True:
            with self._lock:
                request = self._receive()
                # What it does may be done in other threads, which ask.
            answer = self._answer(*request[1:])
            with self._lock:
                self._send(answer)

    def say(self, *message):
        """Send what is no answer."""
        self._send(self._body(list(message)))

    def number(self, value):
        """Lend something; gives its number."""
        if len(self.lent) >= MOST_LENT and id(value) not in self.lent:
            raise ValueError(f"more than {MOST_LENT} objects that aren't plain data")
        self.lent[id(value)] = value
        return id(value)

    def encode(self, value, depth=0):
        """Give what `json.dumps` takes.

        Raises:
            ValueError: It is too deep, perhaps since it contains itself.
            TypeError: It can neither be sent nor lent.
        """
        kind = type(value)
        if value is None or kind in (bool, str, float):
            return value
        if kind is int:
            # Python turns no large integers into decimal text, or slowly.
            return value if -_JSON_INT < value < _JSON_INT else {"int": [hex(value)]}
        if depth > MOST_DEPTH:
            raise ValueError(f"data that is more than {MOST_DEPTH} levels deep, or contains itself")
        if kind is list:
            return [self.encode(one, depth + 1) for one in value]
        if kind in _PLAIN:
            name, parts, _ = _PLAIN[kind]
            return {name: [self.encode(one, depth + 1) for one in parts(value)]}
        parts = _LATE.get((kind.__module__, kind.__name__))
        if parts is not None:
            return {kind.__name__: [self.encode(one, depth + 1) for one in parts(value)]}
        return self._encode_other(value, depth)

    def decode(self, data, depth=0):
        """Give back what `encode` got at the other end."""
        if depth > 2 * MOST_DEPTH:
            raise ValueError("too deep")
        if isinstance(data, list):
            return [self.decode(one, depth + 1) for one in data]
        if not isinstance(data, dict):
            return data
        ((name, parts),) = data.items()
        if name in _MADE:
            return _MADE[name]([self.decode(one, depth + 1) for one in parts])
        if name == "int":
            return int(*parts, 16)
        if name in _LATE_MODULES:
            make = getattr(importlib.import_module(_LATE_MODULES[name]), name)
            return make(*(self.decode(one, depth + 1) for one in parts))
        if name == "yours":
            return self.lent[parts]
        if name == "type":
            return _TYPES[parts]
        if name == "exception":
            return self._exception(parts)
        return self._borrow(name, parts)

    def _encode_other(self, value, depth):
        if isinstance(value, type):
            if _TYPES.get(value.__name__) is value:
                return {"type": value.__name__}
            if issubclass(value, Exception):
                return {"exception": self._names(value)}
        for kind, exact in _EXACT.items():
            if isinstance(value, kind):
                return self.encode(exact(value), depth)
        for kind, (name, parts, _) in _PLAIN.items():
            if isinstance(value, kind):
                return {name: [self.encode(one, depth + 1) for one in parts(value)]}
        if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
            return self.encode(value.tolist(), depth)
        return self._lend(value)

    def _answer(self, operation, args, kwargs):
        """Do what the other end asked for; gives the body of the answer."""
        try:
            work = self._operations[operation]
            # Of this process nothing but what was lent: no class either, from which others could be made.
            if not (isinstance(args, list) and args and isinstance(args[0], dict) and list(args[0]) == ["yours"]):
                raise TypeError("asks for what wasn't lent")
            given, named = self.decode(args), self.decode(kwargs)
        except Exception as error:  # noqa: BLE001 - the boundary: it may have said anything
            raise self._break(f"{type(error).__name__}: {error}") from None
        try:
            said = ["value", self.encode(work(*given, **named))]
        except StopIteration as error:
            said = ["stop"] if operation == "next" else self._raised(error)
        except Exception as error:  # noqa: BLE001 - it is the other end's
            said = self._raised(error)
        try:
            return self._body([*said, self._changed([*args, kwargs], [*given, named])])
        except Exception as error:  # noqa: BLE001 - as above
            return self._body([*self._raised(error), {}])

    def _changed(self, before, values):
        """Encode the arguments that the call has changed, by their place."""
        after = {
            str(place): (data, self.encode(value))
            for place, (data, value) in enumerate(zip(before, values))
            if isinstance(data, list) or (isinstance(data, dict) and not _REFERENCES.intersection(data))
        }
        return {place: data for place, (old, data) in after.items() if data != old}

    def _outcome(self, operation, given, answer):
        """Take in an answer."""
        if answer[0] == "failed":
            raise self._break(str(answer[1]))
        try:
            kind, *parts, changed = answer
            for place, data in changed.items():
                _restore(given[int(place)], self.decode(data))
            if kind == "value":
                return self.decode(*parts)
            if kind == "raise":
                names, said = parts
                error = self._exception(names)(*self.decode(said))
            elif kind == "stop" and operation == "next" and not parts:
                error = StopIteration()
            else:
                raise ValueError(f"an answer of the kind {kind!r}")
        except Exception as error:  # noqa: BLE001 - the boundary: it may have said anything
            raise self._break(f"{type(error).__name__}: {error}") from None
        raise error

    def _raised(self, error):
        """Say what was raised."""
        plain = all(isinstance(one, (str, int, float)) for one in error.args)
        return ["raise", self._names(type(error)), self.encode(list(error.args) if plain else [str(error)])]

    def _names(self, kind):
        """The class's name, and those of its bases up to a builtin one."""
        names = []
        for one in kind.__mro__:
            if _EXCEPTIONS.get(one.__name__) is one:
                return [*names, one.__name__]
            # Not those that are made of others only, such as `Generic`.
            if issubclass(one, Exception):
                self.exceptions.setdefault(one.__name__, one)
                names.append(one.__name__)
        raise AssertionError(kind)

    def _exception(self, names):
        """The class of that name; one is made if there is none."""
        *ours, last = names
        found = _EXCEPTIONS[last]
        for name in reversed(ours):
            if name not in self.exceptions:
                if len(self.exceptions) >= MOST_EXCEPTIONS:
                    raise ValueError(f"more than {MOST_EXCEPTIONS} classes of exceptions")
                self.exceptions[name] = type(name, (found,), {})
            found = self.exceptions[name]
        return found

    def _body(self, message):
        body = json.dumps(message, separators=(",", ":")).encode()
        if len(body) > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES >> 20} MB of data")
        return struct.pack("!I", len(body)) + body

    def _send(self, body):
        self._check()
        try:
            self._channel.sendall(body)
        except OSError as error:
            raise self._break(str(error)) from None

    def _receive(self):
        self._check()
        try:
            size = struct.unpack("!I", self._exactly(4))[0]
            self._received += size
            if size > MOST_BYTES or self._received > MOST_BYTES_IN_ALL:
                raise ValueError("it sends too much")
            message = json.loads(self._exactly(size))
            known = {"do": 4, "value": 3, "raise": 4, "stop": 2, "failed": 2}
            if not isinstance(message, list) or known.get(message[0] if message else None) != len(message):
                raise ValueError("it sends what is no message")
            return message
        except (EOFError, OSError, RecursionError, TypeError, ValueError) as error:
            raise self._break(str(error)) from None

    def _exactly(self, size):
        data = bytearray()
        while len(data) < size:
            block = self._channel.recv(min(size - len(data), 1 << 20))
            if not block:
                raise EOFError("it is gone")
            data += block
        return bytes(data)

    def _check(self):
        if self.broken is not None:
            raise Gone(self.broken)

    def _break(self, why):
        self.broken = self.broken or why
        return Gone(self.broken)


def _flat(pairs):
    return [one for pair in pairs.items() for one in pair]


def _pairs(parts):
    return dict(zip(parts[::2], parts[1::2]))


def _restore(old, new):
    """Make of what was given what has become of it, in place as far as it can be; gives what is there then."""
    if isinstance(old, (list, collections.deque)) and isinstance(new, type(old)):
        parts = [_restore(*pair) for pair in zip(old, new)] + list(new)[len(old) :]
        old.clear()
        old.extend(parts)
    elif isinstance(old, dict) and isinstance(new, dict):
        parts = {key: _restore(old[key], value) if key in old else value for key, value in new.items()}
        old.clear()
        old.update(parts)
    elif isinstance(old, set) and isinstance(new, set):
        old.clear()
        old.update(new)
    elif isinstance(old, bytearray) and isinstance(new, bytearray):
        old[:] = new
    elif isinstance(old, tuple) and isinstance(new, tuple):
        parts = [_restore(*pair) for pair in zip(old, new)]
        return old if len(old) == len(new) and all(map(operator.is_, old, parts)) else new
    else:
        return new
    return old
