"""Rows for the tests of tracking."""

from __future__ import annotations

from matrix.data.rows import Response, Row, RowError, Score


def good_row(number: int, text: str = "Paris", value: float = 1.0, trial: int = 0) -> Row:
    response = Response([text], ["stop"], {}, None, None, None, 0.1, "http://here", 1)
    request = {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Question {number}"}]
    }
    return Row(f"r{number}", number, trial, "ok", request, response, scores={"exact": Score([value], [text])})


def bad_row(number: int) -> Row:
    request = {"messages": [{"role": "user", "content": f"Question {number}"}]}
    return Row(f"r{number}", number, 0, "error", request, error=RowError("timeout", "no answer in 5 s", 4))
