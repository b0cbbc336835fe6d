"""OpenAI's JSON, as plain objects, to the messages of openai.proto and back.

Nothing is lost: `to_json(to_message(kind, given)) == given` for whatever is JSON, null and absent told apart. What no
field can hold goes into the message's `extra`; the head of the .proto says how. (An integer where the field is a
floating-point number comes back as one: 1 as 1.0.)

The tables are made from the descriptors, once, so that a field that is added to the .proto is known here. A request of
the usual size takes some microseconds each way, half of what `json_format` does, which also turns 64-bit integers into
texts and knows no `extra`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import orjson
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from matrix.wire import openai_pb2

Json = dict[str, Any]
AnyMessage = TypeVar("AnyMessage", bound=Message)

_ALTERNATIVES = {
    "content_parts": "content",
    "prompts": "prompt",
    "prompt_tokens": "prompt",
    "inputs": "input",
    "input_tokens": "input",
    "tool_choice_object": "tool_choice",
    "embedding_base64": "embedding",
}
"""Fields that are other types of a JSON field. `prompt_tokens` of a usage is a field of its own."""
_JSON = "_json"
_EXTRA = "extra"

_EXACT = 2**53
"""Integers up to here are the same as a double."""

_TYPES: dict[int, frozenset[type]] = {
    FieldDescriptor.TYPE_STRING: frozenset({str}),
    FieldDescriptor.TYPE_DOUBLE: frozenset({float, int}),
    FieldDescriptor.TYPE_INT64: frozenset({int}),
    FieldDescriptor.TYPE_BOOL: frozenset({bool}),
}

_Fit = Callable[[Any], Any]
"""From a JSON value to what a message's constructor takes for a field; None if the value doesn't fit."""
_Read = Callable[[Any], Any]


def to_message(kind: type[AnyMessage], given: Json) -> AnyMessage:
    """Make a message.

    Args:
        kind: Its class.
        given: The JSON object.

    Raises:
        TypeError: It isn't JSON: an object of another kind, or a name that isn't text.
        ValueError: A text isn't valid Unicode (a lone surrogate).
    """
    return kind(**_CODECS[kind.DESCRIPTOR.full_name].pack(given))


def to_json(message: Message) -> Json:
    """The JSON object that a message stands for.

    Raises:
        ValueError: A text in `extra` or in a `_json` field isn't JSON.
    """
    return _CODECS[message.DESCRIPTOR.full_name].unpack(message)


class _Codec:
    """Both directions for one kind of message."""

    def __init__(self) -> None:
        self._scalars: dict[str, frozenset[type]] = {}
        self._others: dict[str, list[tuple[str, _Fit]]] = {}
        self._reads: dict[FieldDescriptor, tuple[str, _Read | None]] = {}

    def learn(self, field: FieldDescriptor) -> None:
        """Take up a field."""
        if field.name == _EXTRA:
            self._reads[field] = (_EXTRA, None)
            return
        name = _json_name(field)
        fit, read = _ways(field)
        self._reads[field] = (name, read)
        if read is None and name == field.name:
            self._scalars[name] = _TYPES[field.type]
        else:
            self._others.setdefault(name, []).append((field.name, fit))

    def pack(self, given: Json) -> Json:
        """Arguments of the message's constructor."""
        scalars, others = self._scalars, self._others
        found: Json = {}
        extra: dict[str, str] | None = None
        for name, value in given.items():
            types = scalars.get(name)
            kind = type(value)
            if types is not None and kind in types and (kind is not int or -_EXACT <= value <= _EXACT):
                found[name] = value
                continue
            for field, fit in others.get(name, ()):
                kept = fit(value)
                if kept is not None:
                    found[field] = kept
                    break
            else:
                if extra is None:
                    extra = found[_EXTRA] = {}
                extra[name] = orjson.dumps(value).decode()
        return found

    def unpack(self, message: Message) -> Json:
        """The JSON object."""
        reads = self._reads
        found: Json = {}
        for field, value in message.ListFields():
            name, read = reads[field]
            if read is not None:
                found[name] = read(value)
            elif name is not _EXTRA:
                found[name] = value
            else:
                # It has the highest number, so that it comes last and wins.
                for key, text in value.items():
                    found[key] = orjson.loads(text)
        return found


def _ways(field: FieldDescriptor) -> tuple[_Fit, _Read | None]:
    """How a field is written and read; None: as it is."""
    if field.name.endswith(_JSON):
        return _text, orjson.loads
    if field.message_type:
        return _ways_of_objects(field.message_type, several=field.is_repeated)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return _bytes, list
    types = _TYPES[field.type]
    if field.is_repeated:
        return (lambda value: value if type(value) is list and value and _all(types, value) else None), list
    return (lambda value: value if _all(types, (value,)) else None), None


def _ways_of_objects(kind: Descriptor, *, several: bool) -> tuple[_Fit, _Read]:
    if kind.GetOptions().map_entry:
        return _numbers_by_name, dict
    codec = _CODECS[kind.full_name]
    if several:
        return _each(codec.pack), lambda value: list(map(codec.unpack, value))
    return (lambda value: codec.pack(value) if type(value) is dict else None), codec.unpack


def _text(value: Any) -> str:
    return orjson.dumps(value).decode()


def _each(pack: Callable[[Json], Json]) -> _Fit:
    def fit(value: Any) -> list[Json] | None:
        if type(value) is list and set(map(type, value)) == {dict}:
            return list(map(pack, value))
        return None

    return fit


def _numbers_by_name(value: Any) -> dict[str, float] | None:
    if type(value) is dict and value and _all(_TYPES[FieldDescriptor.TYPE_DOUBLE], value.values()):
        return value
    return None


def _bytes(value: Any) -> bytes | None:
    if type(value) is not list or not set(map(type, value)) <= {int}:
        return None
    return bytes(value) if not value or (min(value) >= 0 and max(value) < 256) else None


def _all(types: frozenset[type], values: Iterable[Any]) -> bool:
    """Whether all are of these types, and none an integer that is too large."""
    found = set(map(type, values))
    return found <= types and (int not in found or all(-_EXACT <= one <= _EXACT for one in values))


def _json_name(field: FieldDescriptor) -> str:
    name = field.name.removesuffix(_JSON)
    other = _ALTERNATIVES.get(name, name)
    parent = field.containing_type
    return other if parent and other in parent.fields_by_name else name


def _codecs(messages: Iterable[Descriptor]) -> dict[str, _Codec]:
    return {message.full_name: _Codec() for message in messages}


_MESSAGES = list(openai_pb2.DESCRIPTOR.message_types_by_name.values())
_CODECS = _codecs(_MESSAGES)
for _message in _MESSAGES:
    for _field in _message.fields:
        _CODECS[_message.full_name].learn(_field)
