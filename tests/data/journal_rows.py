"""Rows for the tests of the journal."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matrix.data.journal import Journal
from matrix.data.rows import Response, Row, RowError, Score

ANSWER = Response(
    text=["4", ""],
    finish_reason=["stop", None],
    usage={"completion_tokens": 3},
    reasoning_content=["2 + 2", None],
    tool_calls=[[], [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]],
    logprobs=[{"content": []}, None],
    latency_s=0.25,
    endpoint="http://e/v1",
    attempts=2,
)
OK = Row("a", 0, 0, "ok", {"temperature": 0}, ANSWER, scores={"number": Score([1.0, 0.0], ["4", None])})
FAILED = Row("b", 1, 0, "error", {}, error=RowError("http_400", "too long", 1))


def row(index: int, trial: int = 0, **fields: Any) -> Row:
    return Row(fields.pop("id", str(index)), index, trial, "ok", fields.pop("request", {}), **fields)


def failed(index: int, trial: int = 0, message: str = "") -> Row:
    return Row(str(index), index, trial, "error", {}, error=RowError("timeout", message))


def write(folder: Path, *rows: Row, writer: str = "0") -> Path:
    return write_all(folder, rows, writer)


def write_all(folder: Path, rows: Iterable[Row], writer: str = "0") -> Path:
    with Journal(folder, writer) as journal:
        for one in rows:
            journal.append(one)
    return journal.path
