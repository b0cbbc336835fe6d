"""The smallest JSON value that fits a JSON schema: what a simulated model answers when it has to keep to one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from matrix.serving.backend import ApiError

_DEEPEST = 50
# https://json-schema.org/draft/2020-12/json-schema-validation#section-7.3, one example of each.
_FORMATS = {
    "date": "2000-01-01",
    "date-time": "2000-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "duration": "P1D",
    "email": "a@example.org",
    "hostname": "example.org",
    "ipv4": "127.0.0.1",
    "ipv6": "::1",
    "uri": "https://example.org",
    "uuid": "00000000-0000-0000-0000-000000000000",
}


def smallest(schema: Any) -> Any:
    """Return a value that fits: required properties only, the first of alternatives, the smallest number.

    Regular expressions (`pattern`), `not`, `if` and rules about what else may not be there aren't looked at.

    Raises:
        ApiError: 400, for a schema that isn't one, or has no finite value.
    """
    return _value(schema, schema, 0)


def _value(schema: Any, root: Any, depth: int) -> Any:  # noqa: PLR0911 - one for each kind of schema
    if depth > _DEEPEST:
        raise ApiError(400, "The JSON schema requires itself: no finite value fits it.")
    if schema is True or schema == {}:
        return None
    if not isinstance(schema, Mapping):
        raise ApiError(400, f"{schema!r} isn't a JSON schema that a value could fit.")
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    if (simpler := _simpler(schema, root)) is not None:
        return _value(simpler, root, depth + 1)
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "object" or (kind is None and "properties" in schema):
        properties = schema.get("properties", {})
        return {name: _value(properties.get(name, True), root, depth + 1) for name in schema.get("required", ())}
    if kind == "array":
        first = schema.get("prefixItems", [])
        rest = max(0, schema.get("minItems", 0) - len(first)) * [schema.get("items", True)]
        return [_value(item, root, depth + 1) for item in [*first, *rest]]
    return _scalar(kind, schema)


def _simpler(schema: Mapping[str, Any], root: Any) -> Any:
    """What a schema that is only made of others comes down to; None if it isn't."""
    if "$ref" in schema:
        return _referred(schema["$ref"], root)
    if schema.get("allOf"):
        return _merged(schema, root)
    alternatives = schema.get("anyOf") or schema.get("oneOf")
    return alternatives[0] if alternatives else None


def _scalar(kind: Any, schema: Mapping[str, Any]) -> Any:
    if kind == "string":
        return _FORMATS.get(schema.get("format", ""), "").ljust(schema.get("minLength", 0), "a")
    if kind in {"integer", "number"}:
        return _number(schema, 1 if kind == "integer" else None)
    return False if kind == "boolean" else None


def _number(schema: Mapping[str, Any], step: float | None) -> float:
    """The number nearest to 0 within the bounds, more or less."""
    step = schema.get("multipleOf", step)
    above, below = schema.get("exclusiveMinimum", -math.inf), schema.get("exclusiveMaximum", math.inf)
    low: float = max(schema.get("minimum", -math.inf), above)
    high: float = min(schema.get("maximum", math.inf), below)
    if low <= 0 <= high and above < 0 < below:
        return 0
    if step is None:
        # Half way to the other bound, or to what is near: neither is excluded.
        return (low + min(high, low + 2)) / 2 if low >= 0 else (max(low, high - 2) + high) / 2
    number: float = math.ceil(low / step) * step if low >= 0 else math.floor(high / step) * step
    if number in {above, below}:
        number += step if low >= 0 else -step
    return number


def _referred(pointer: Any, root: Any) -> Any:
    if not isinstance(pointer, str) or not pointer.startswith("#"):
        raise ApiError(400, f"$ref {pointer!r}: only references into the same schema (#/$defs/...) are known.")
    found = root
    for part in pointer[1:].split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, Mapping) or name not in found:
            raise ApiError(400, f"$ref {pointer!r} points nowhere.")
        found = found[name]
    return found


def _merged(schema: Mapping[str, Any], root: Any) -> dict[str, Any]:
    """A schema and all that `allOf` adds to it, as one."""
    whole = {name: value for name, value in schema.items() if name != "allOf"}
    for part in schema["allOf"]:
        more = _referred(part["$ref"], root) if "$ref" in part else part
        properties = {**whole.get("properties", {}), **more.get("properties", {})}
        required = [*whole.get("required", ()), *more.get("required", ())]
        whole = {**whole, **more, "properties": properties, "required": list(dict.fromkeys(required))}
        if not properties:
            del whole["properties"], whole["required"]
    return whole
