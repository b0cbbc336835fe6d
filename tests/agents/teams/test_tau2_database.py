from __future__ import annotations

import json

from matrix.agents.teams.tau2.database import Database

SHARED = {"books": {"a": {"title": "A", "tags": ["x"], "shelf": {"room": 1, "row": 2}}, "b": {"title": "B"}}}


def test_edits_stay_in_the_copy() -> None:
    before = json.dumps(SHARED)
    one, other = Database(SHARED), Database(SHARED)
    one.edit("books", "a")["tags"].append("y")
    one.put("books", "c", {"title": "C"})
    assert one.find("books", "a") == {"title": "A", "tags": ["x", "y"], "shelf": {"room": 1, "row": 2}}
    assert [key for key, _ in one.items("books")] == ["a", "b", "c"]
    assert (one.count("books"), other.count("books"), other.find("books", "c")) == (3, 2, None)
    assert json.dumps(SHARED) == before


def test_what_was_changed_back_is_no_change() -> None:
    database = Database(SHARED)
    database.edit("books", "b")["title"] = "Z"
    assert database.changes() == {"books": {"b": {"title": "Z"}}}
    database.edit("books", "b")["title"] = "B"
    assert database.changes() == {}


def test_data_is_laid_over_field_by_field_and_lists_as_a_whole() -> None:
    database = Database(SHARED)
    database.merge({"books": {"a": {"tags": ["z"], "shelf": {"row": 3}}, "n": {"title": "N"}}})
    assert database.find("books", "a") == {"title": "A", "tags": ["z"], "shelf": {"room": 1, "row": 3}}
    assert database.find("books", "n") == {"title": "N"}
    assert SHARED["books"]["a"]["shelf"] == {"room": 1, "row": 2}
