"""Rows as a parquet file: fields of a fixed type are columns, fields whose type varies are JSON text."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import IO, Any

import orjson

from matrix.errors import DataError

_ROW_GROUP_BYTES = 8 << 20
"""JSON in a row group; as Python objects, on the way, it takes some times as much memory."""

_JSON_OF_RESPONSE = ("usage", "tool_calls", "logprobs", "prompt_logprobs", "embeddings", "executed")

_JSON_OF_ENTRY = ("data", "tool_calls", "calls")


def write_parquet(lines: Iterator[bytes], file: IO[bytes]) -> int:
    """Write lines of a journal as a table; returns how many there were.

    `request` and, in `response`, `usage`, `tool_calls`, `logprobs`, `prompt_logprobs`, `embeddings` (numbers or
    base64) and `executed` are JSON text. `response` and `error` are structs. `scores` is a list of structs with the
    field `scorer` instead of an object by scorer, whose type would depend on the run. Rows of a team have their fields,
    too: `history` is a list of structs, with `data`, `tool_calls` and `calls` as JSON text, and so are `metrics` and
    `tokens`.

    Raises:
        DataError: pyarrow isn't installed, or a line is no row.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise DataError("rows as .parquet need pyarrow: pip install 'matrix-llm[hub]'") from error
    first = next(lines, b"")
    schema = row_schema(team=bool(first) and "history" in orjson.loads(first))
    count = 0
    try:
        with parquet.ParquetWriter(file, schema, compression="zstd") as table:
            for group in _groups(chain([first] if first else [], lines)):
                table.write_batch(pa.RecordBatch.from_pylist(list(map(_columns, group)), schema))
                count += len(group)
    except (ValueError, TypeError, LookupError, AttributeError, pa.lib.ArrowException) as error:
        raise DataError(f"a row can't be written as parquet: {error}") from error
    return count


def row_schema(*, team: bool = False) -> Any:
    """The columns, as a `pyarrow.Schema`: of a pipeline's rows, or of a team's."""
    import pyarrow as pa

    texts = pa.list_(pa.string())
    response = {
        "text": texts,
        "finish_reason": texts,
        "usage": pa.string(),
        "reasoning_content": texts,
        "tool_calls": pa.string(),
        "logprobs": pa.string(),
        "latency_s": pa.float64(),
        "endpoint": pa.string(),
        "attempts": pa.int32(),
        "prompt_logprobs": pa.string(),
        "embeddings": pa.string(),
        "executed": pa.string(),
    }
    error = {"type": pa.string(), "message": pa.string(), "attempts": pa.int32(), "traceback": pa.string()}
    score = {"scorer": pa.string(), "values": pa.list_(pa.float64()), "answers": texts, "statuses": texts}
    entry = {
        "agent": pa.string(),
        "text": pa.string(),
        "at_s": pa.float64(),
        "took_s": pa.float64(),
        "data": pa.string(),
        "tool_calls": pa.string(),
        "reasoning": pa.string(),
        "calls": pa.string(),
    }
    workflow = {
        "history": pa.list_(pa.struct(entry)),
        "termination": pa.string(),
        "metrics": pa.string(),
        "tokens": pa.string(),
        "took_s": pa.float64(),
        "cost_usd": pa.float64(),
    }
    return pa.schema(
        {
            "id": pa.string(),
            "index": pa.int64(),
            "trial": pa.int32(),
            "status": pa.string(),
            "request": pa.string(),
            "response": pa.struct(response),
            "error": pa.struct(error),
            "scores": pa.list_(pa.struct(score)),
            **(workflow if team else {}),
        }
    )


def _groups(lines: Iterator[bytes]) -> Iterator[list[bytes]]:
    """Lines, as many at a time as make a row group; by size, since a row with logprobs can have megabytes."""
    group: list[bytes] = []
    size = 0
    for line in lines:
        group.append(line)
        size += len(line)
        if size >= _ROW_GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _columns(line: bytes) -> dict[str, Any]:
    row: dict[str, Any] = orjson.loads(line)
    row["request"] = _text(row["request"])
    if row["response"] is not None:
        row["response"] |= {name: _text(row["response"].get(name)) for name in _JSON_OF_RESPONSE}
    row["scores"] = [{"scorer": label, **score} for label, score in row["scores"].items()]
    if "history" in row:
        for entry in row["history"]:
            entry |= {name: _text(entry[name]) for name in _JSON_OF_ENTRY}
        row |= {name: _text(row[name]) for name in ("metrics", "tokens")}
    return row


def _text(value: Any) -> str | None:
    return None if value is None else orjson.dumps(value).decode()
