from __future__ import annotations

import pytest

from matrix.data.columns import find, names

COLUMNS = {"text": "a", "request": {"messages": ["b"], "deep": {"er": None}}, "dotted.name": "c", "request.own": "d"}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("text", "a"),
        ("request.messages", ["b"]),
        ("request.deep.er", None),
        ("dotted.name", "c"),
        ("request.own", "d"),
        ("request.nope", "missing"),
        ("text.nope", "missing"),
        ("request.messages.0", "missing"),
        ("nope", "missing"),
        ("", "missing"),
    ],
)
def test_a_path_leads_into_nested_columns(path: str, value: object) -> None:
    assert find(COLUMNS, path, "missing") == value


def test_names_are_listed_for_messages() -> None:
    assert names(COLUMNS) == "text, request, dotted.name, request.own"
    assert names({}) == "none"
