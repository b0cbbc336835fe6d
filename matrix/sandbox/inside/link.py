"""Calls between a judge and the program that it judges, over a socket.

Both ends do the same: ask the other to do something, and do meanwhile what it asks. The program's end may send anything
at any time. A message that makes no sense breaks the link, for good: whatever the test makes of the error, it doesn't
pass.
"""

from __future__ import annotations

import collections
import contextlib
import json
import operator
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from .wire import Codec, Data

MOST_BYTES = 16 << 20
"""Of a message."""
MOST_BYTES_IN_ALL = 256 << 20
MOST_NESTED = 40
"""Calls that wait for each other: of a function that calls a function that it was given, and so on."""

# Kinds of messages, and their length.
_LENGTHS = {"do": 4, "value": 3, "raise": 4, "stop": 2, "failed": 2}
# Kinds of data that can change, or hold what can.
_CHANGING = {"tuple", "set", "deque", "dict", "Counter", "OrderedDict", "bytearray"}


class Gone(BaseException):
    """The other end is, or says what makes no sense. Not for a test to catch."""


class Link:
    """One end.

    Attributes:
        codec: Of what is said.
        broken: Why nothing can be asked any more; None while it can.
    """

    def __init__(self, channel: socket.socket, operations: dict[str, Callable[..., Any]], codec: Codec) -> None:
        """Make it.

        Args:
            channel: To the other end.
            operations: What the other end may ask for, by name. They get something `lent` first.
            codec: Of what is said.
        """
        self.codec = codec
        self.broken: str | None = None
        self._channel = channel
        self._operations = operations
        self._received = 0
        self._nested = 0
        # A thread may ask while another does.
        self._lock = threading.RLock()

    def ask(self, operation: str, /, *args: Any, **kwargs: Any) -> Any:
        """Have the other end do something with what it lent, `args[0]`; gives or raises what came of it.

        Raises:
            Gone: Nobody answers.
            StopIteration: Of `next` only.
        """
        with self._lock:
            if self._nested >= MOST_NESTED:
                raise RecursionError("the test and the program call each other too deeply")
            body = _body("do", operation, self.codec.encode(list(args)), self.codec.encode(kwargs))
            self._nested += 1
            done = False
            try:
                self._send(body)
                answer = self._receive()
                while answer[0] == "do":
                    self._send(self._answer(*answer[1:]))
                    answer = self._receive()
                done = True
            finally:
                self._nested -= 1
                if not done:
                    # The next answer would be taken for that of another call.
                    self._broken("a call was given up")
            return self._outcome(operation, [*args, kwargs], answer)

    def serve(self) -> NoReturn:
        """Answer until the other end is gone.

        Raises:
            Gone: It is.
        """
        while True:
            with self._lock:
                request = self._receive()
            # Threads that this starts may ask.
            answer = self._answer(*request[1:])
            with self._lock:
                self._send(answer)

    def fail(self, why: str) -> None:
        """Say that there will be no answers."""
        self._send(_body("failed", why))

    def _answer(self, operation: str, args: Data, kwargs: Data) -> bytes:
        """Do what the other end asked for; gives the message."""
        try:
            # Nothing but what was lent: no class either, from which others could be made.
            if list(args[0]) != ["yours"] or not isinstance(args[0], dict):
                self._broken("it asks about what wasn't lent")
            work = self._operations[operation]
            given, named = self.codec.decode(args), self.codec.decode(kwargs)
        except Exception as error:  # noqa: BLE001 - the boundary
            self._broken(f"a request that makes no sense: {error}")
        self._check()
        try:
            said = ["value", self.codec.encode(work(*given, **named))]
        except StopIteration as error:
            said = ["stop"] if operation == "next" else self._raised(error)
        except Exception as error:  # noqa: BLE001 - the other end's to handle
            said = self._raised(error)
        try:
            return _body(*said, self._changed([*args, kwargs], [*given, named]))
        except Exception as error:  # noqa: BLE001 - it is too large, or contains itself
            return _body(*self._raised(error), {})

    def _changed(self, before: list[Data], values: list[Any]) -> dict[str, Data]:
        """What the call has changed of its arguments, by their place."""
        now = {
            place: self.codec.encode(values[place])
            for place, data in enumerate(before)
            if isinstance(data, list) or (isinstance(data, dict) and not _CHANGING.isdisjoint(data))
        }
        return {str(place): data for place, data in now.items() if data != before[place]}

    def _outcome(self, operation: str, given: list[Any], answer: list[Data]) -> Any:
        """Take in an answer."""
        error: BaseException | None = None
        value = None
        try:
            kind, *parts, changed = answer
            if kind == "failed":
                self._broken(str(changed))
            elif kind == "value":
                value = self.codec.decode(*parts)
            elif kind == "raise":
                error = self.codec.exception(parts[0])(*self.codec.decode(parts[1]))
            elif operation == "next":
                error = StopIteration()
            else:
                self._broken("an end of what isn't iterated over")
            self._check()
            for place, data in changed.items():
                _restore(given[int(place)], self.codec.decode(data))
        except Exception as fault:  # noqa: BLE001 - the boundary
            self._broken(f"an answer that makes no sense: {fault}")
        self._check()
        if error is not None:
            raise error
        return value

    def _raised(self, error: Exception) -> list[Data]:
        """The message that it was raised, but for what has changed."""
        plain = all(isinstance(one, (str, int, float)) for one in error.args)
        return ["raise", self.codec.names(type(error)), self.codec.encode([*error.args] if plain else [str(error)])]

    def _send(self, body: bytes) -> None:
        self._check()
        # Where nobody listens any more there may be something to hear: why.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._channel.sendall(body)

    def _receive(self) -> list[Data]:
        self._check()
        message: Data = None
        try:
            (size,) = struct.unpack("!I", self._exactly(4))
            self._received += size
            if size <= MOST_BYTES and self._received <= MOST_BYTES_IN_ALL:
                message = json.loads(self._exactly(size))
            else:
                self._broken("it says too much")
            if not isinstance(message, list) or _LENGTHS.get(message[0]) != len(message):
                self._broken("a message that makes no sense")
        except (EOFError, ConnectionResetError):
            self._broken("it is gone")
        except Exception as error:  # noqa: BLE001 - the boundary
            self._broken(f"a message that makes no sense: {error}")
        self._check()
        return list(message)

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            block = self._channel.recv(min(size - len(data), 1 << 20))
            if not block:
                raise EOFError
            data += block
        return bytes(data)

    def _broken(self, why: str) -> None:
        self.broken = self.broken or why

    def _check(self) -> None:
        if self.broken is not None:
            raise Gone(self.broken)


def _body(*message: Data) -> bytes:
    body = json.dumps(message, separators=(",", ":")).encode()
    if len(body) > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES >> 20} MB of data")
    return struct.pack("!I", len(body)) + body


def _restore(old: Any, new: Any) -> Any:
    """Make of what was given what has become of it, in place as far as it can be; gives what is there then."""
    if isinstance(old, (list, collections.deque)) and isinstance(new, (list, collections.deque)):
        parts = [*map(_restore, old, new), *list(new)[len(old) :]]
        old.clear()
        old.extend(parts)
    elif isinstance(old, dict) and isinstance(new, dict):
        pairs = {key: _restore(old[key], value) if key in old else value for key, value in new.items()}
        old.clear()
        old.update(pairs)
    elif isinstance(old, set) and isinstance(new, set):
        old.clear()
        old.update(new)
    elif isinstance(old, bytearray) and isinstance(new, bytearray):
        old[:] = new
    elif isinstance(old, tuple) and isinstance(new, tuple) and len(old) == len(new):
        parts = [*map(_restore, old, new)]
        return old if all(map(operator.is_, old, parts)) else new
    else:
        return new
    return old
