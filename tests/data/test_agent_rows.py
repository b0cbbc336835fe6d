"""Rows of a team on the disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from matrix.data.journal import Journal
from matrix.data.parts import decode_row, done_keys, heads
from matrix.data.rows import AgentRow, Call, Entry, Row, RowError, Score
from matrix.data.sorting import read_rows, write_sorted
from matrix.errors import DataError
from tests.data.journal_rows import OK

ENTRY = Entry(
    "writer",
    "ü\n",
    0.5,
    1.5,
    {"marks": [1, None]},
    [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    "hm",
    [
        Call("llm", 1.0, {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 1}}, "http://x/v1", 2, True),
        Call("f", 0.1, error="ValueError: no"),
    ],
)
WHOLE = AgentRow(
    "a",
    3,
    1,
    "ok",
    {"task": {"x": 1}},
    scores={"math": Score([1.0], ["4"])},
    history=[ENTRY, Entry("critic", "")],
    termination="agreement",
    metrics={"rounds": 2.0},
    tokens={"prompt_tokens": 3, "completion_tokens": 1, "cached_prompt_tokens": 1},
    took_s=2.0,
    cost_usd=0.5,
)
FAILED = AgentRow("b", 0, 0, "error", {}, error=RowError("KeyError", "no", 1, "Traceback\n  x"), termination="error")


def test_a_row_comes_back_as_it_was(tmp_path: Path) -> None:
    with Journal(tmp_path / "rows", "driver") as journal:
        for row in (WHOLE, FAILED, OK):
            journal.append(row)
    lines = journal.path.read_bytes().splitlines(keepends=True)
    assert [decode_row(line) for line in lines[:2]] == [WHOLE, FAILED]
    plain = decode_row(lines[2])
    assert type(plain) is Row
    assert [head[2:] for head in heads(journal.path)] == [(3, 1, True), (0, 0, False), (0, 0, True)]


def test_they_are_sorted_with_all_that_they_hold(tmp_path: Path) -> None:
    with Journal(tmp_path / "rows", "driver") as journal:
        journal.append(WHOLE)
        journal.append(FAILED)
    assert list(read_rows(tmp_path / "rows")) == [FAILED, WHOLE]
    write_sorted(tmp_path / "rows", tmp_path / "rows.jsonl")
    found = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["id"] for row in found] == ["b", "a"]
    assert found[1]["history"][0]["calls"][0]["usage"] == {
        "prompt_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 1},
    }
    assert done_keys(tmp_path / "rows", retry_errors=True) == {(3, 1)}


def test_its_usage_is_that_of_all_its_calls() -> None:
    assert WHOLE.usage["prompt_tokens"] == 3
    assert WHOLE.usage["prompt_tokens_details"] == {"cached_tokens": 1}
    assert FAILED.usage["prompt_tokens_details"] == {"cached_tokens": 0}


@pytest.mark.parametrize("line", [b'{"id": "a", "history": 5}', b'{"id": "a", "history": [{"x": 1}]}', b"[]", b"{"])
def test_what_is_no_row(line: bytes) -> None:
    with pytest.raises(DataError, match="not a row of this version"):
        decode_row(line)


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    entry = Entry("a", "x", data={"score": numpy.float32(0.5), "list": numpy.arange(2)})
    with Journal(tmp_path / "rows", "driver") as journal:
        journal.append(AgentRow("a", 0, 0, "ok", {}, history=[entry]))
    found = decode_row(journal.path.read_bytes())
    assert isinstance(found, AgentRow)
    assert found.history[0].data == {"score": 0.5, "list": [0, 1]}
