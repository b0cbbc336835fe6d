"""The smallest values of JSON schemas."""

from __future__ import annotations

from typing import Any

import pytest

from matrix.serving.backend import ApiError
from matrix.serving.simulated.schema import smallest

NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({}, None),
        (True, None),
        ({"type": "object"}, {}),
        ({"type": "object", "properties": {"a": {"type": "string"}, "b": {}}, "required": ["a"]}, {"a": ""}),
        ({"type": "array", "items": {"type": "boolean"}, "minItems": 2}, [False, False]),
        ({"type": "array", "prefixItems": [{"const": 1}], "items": {"const": 2}, "minItems": 2}, [1, 2]),
        ({"type": ["string", "null"], "minLength": 2}, "aa"),
        ({"type": "null"}, None),
        ({"enum": ["x", "y"]}, "x"),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, 0),
        ({"oneOf": [{"const": "a"}]}, "a"),
        ({"allOf": [{"properties": {"a": {"const": 1}}, "required": ["a"]}, {"type": "object"}]}, {"a": 1}),
        ({"type": "string", "format": "date"}, "2000-01-01"),
        ({"type": "integer", "minimum": 3, "maximum": 5}, 3),
        ({"type": "integer", "exclusiveMinimum": 3}, 4),
        ({"type": "integer", "maximum": -2}, -2),
        ({"type": "integer", "exclusiveMaximum": 0}, -1),
        ({"type": "integer", "minimum": 5, "multipleOf": 4}, 8),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, 0.5),
        ({"type": "number", "minimum": -1, "exclusiveMaximum": 0}, -0.5),
        ({"$ref": "#/$defs/node", "$defs": {"node": NODE}}, {}),
        ({"$defs": {"a/b": {"const": 7}}, "$ref": "#/$defs/a~1b"}, 7),
    ],
)
def test_values(schema: Any, value: Any) -> None:
    assert smallest(schema) == value


@pytest.mark.parametrize(
    "schema",
    [
        None,
        False,
        "string",
        {"$ref": "#/$defs/none"},
        {"$ref": "https://example.org/schema"},
        {"$ref": "#/$defs/node", "$defs": {"node": {**NODE, "required": ["next"]}}},
    ],
)
def test_what_no_value_fits(schema: Any) -> None:
    with pytest.raises(ApiError) as caught:
        smallest(schema)
    assert caught.value.status == 400
