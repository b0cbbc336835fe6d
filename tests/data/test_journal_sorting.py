"""All rows in order, each once, however many there are: to iterate, as JSON lines, as parquet."""

from __future__ import annotations

import dataclasses
import json
import random
import threading
import tracemalloc
from pathlib import Path

import pytest

from matrix.data import sorting
from matrix.data.parts import decode_row, done_keys
from matrix.data.row_table import row_schema
from matrix.data.rows import AgentRow, Call, Entry, Response, Row, RowError, Score
from matrix.data.sorting import read_rows, write_sorted
from matrix.errors import DataError
from tests.data.journal_rows import FAILED, OK, failed, row, write, write_all


@pytest.fixture
def small_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sort a few rows as if they were millions."""
    monkeypatch.setattr(sorting, "_RUN", 64)
    monkeypatch.setattr(sorting, "_SPILL_BYTES", 500)
    monkeypatch.setattr(sorting, "_READ_RECORDS", 10)


def test_no_folder_means_no_rows(tmp_path: Path) -> None:
    assert list(read_rows(tmp_path / "none")) == []
    assert write_sorted(tmp_path / "none", tmp_path / "rows.jsonl") == 0
    assert (tmp_path / "rows.jsonl").read_bytes() == b""


def test_all_parts_in_order_each_key_once_the_last_one_wins(tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    first, again = row(3, request={"try": 1}), row(3, request={"try": 2})
    write(rows, row(2, 1), first, row(0), writer="a")
    write(rows, row(2, 0), again, row(10), row(1), writer="b")
    expected = [row(0), row(1), row(2, 0), row(2, 1), again, row(10)]
    assert list(read_rows(rows)) == expected
    assert write_sorted(rows, tmp_path / "rows.jsonl") == 6
    assert [decode_row(line) for line in (tmp_path / "rows.jsonl").read_bytes().splitlines()] == expected
    assert done_keys(rows) == {one.key for one in expected}


def test_an_answer_wins_over_an_error_wherever_it_stands(tmp_path: Path) -> None:
    write(tmp_path, row(0), failed(1), failed(2, message="first"), failed(3), row(3), row(4), writer="a")
    write(tmp_path, failed(0), row(1), failed(2, message="then"), failed(4), writer="b")
    assert list(read_rows(tmp_path)) == [row(0), row(1), failed(2, message="then"), row(3), row(4)]


def test_a_damaged_line_is_named_with_the_way_out(tmp_path: Path) -> None:
    """Its head is sound, so that it counts as done: nobody but the user can say what is to become of it."""
    write(tmp_path, row(0), row(1, request={"prompt": "here"}), writer="a")
    part = tmp_path / "part-a.jsonl"
    part.write_bytes(part.read_bytes().replace(b"here", bytes(4)))
    rows = read_rows(tmp_path)
    assert next(rows) == row(0)
    with pytest.raises(DataError) as raised:
        next(rows)
    said = str(raised.value)
    assert said.startswith(f"{tmp_path}: not a row of this version")
    assert '"index":1' in said
    assert "take the line out of its part" in said


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 128, 1500])
@pytest.mark.usefixtures("small_runs")
def test_sorting_more_than_memory_holds(tmp_path: Path, count: int) -> None:
    keys = [(index // 3, index % 3) for index in range(count)]
    chance = random.Random(0)
    shuffled = chance.sample(keys, len(keys))
    for writer in range(3):
        write_all(tmp_path, (row(*key) for key in shuffled[writer::3]), str(writer))
    doubled = chance.sample(keys, len(keys) // 10)
    write_all(tmp_path, (row(*key, request={"again": True}) for key in doubled), "9")
    found = list(read_rows(tmp_path))
    assert [one.key for one in found] == keys
    assert {one.key for one in found if one.request} == set(doubled)
    assert sorted(path.suffix for path in tmp_path.iterdir() if path.name[0] != ".") == [".jsonl"] * 4


@pytest.mark.usefixtures("small_runs")
def test_several_readers_at_once(tmp_path: Path) -> None:
    write_all(tmp_path / "rows", (row(index) for index in reversed(range(500))))
    pairs = zip(read_rows(tmp_path / "rows"), read_rows(tmp_path / "rows"), strict=True)
    assert [(a.index, b.index) for a, b in pairs] == [(index, index) for index in range(500)]


def test_it_runs_in_any_thread(tmp_path: Path) -> None:
    write(tmp_path / "rows", FAILED, OK)
    thread = threading.Thread(target=write_sorted, args=(tmp_path / "rows", tmp_path / "rows.jsonl"))
    thread.start()
    thread.join()
    assert [json.loads(line)["id"] for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == ["a", "b"]


def test_memory_does_not_grow_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sorting, "_RUN", 500)
    monkeypatch.setattr(sorting, "_SPILL_BYTES", 1000)

    def peak(count: int) -> int:
        folder = tmp_path / str(count)
        write_all(folder, (row(index ^ 1, request={"prompt": "x" * 500}) for index in range(count)))
        write_sorted(folder, tmp_path / "warm.jsonl")
        tracemalloc.start()
        assert write_sorted(folder, tmp_path / "rows.jsonl") == count
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(10_000) < peak(1000) + 20 * 16_500 + 50_000, "a read buffer for each run of 500, and no more"


def test_a_sorted_file_that_cannot_be_written_says_where_the_rows_are(tmp_path: Path) -> None:
    write(tmp_path / "rows", OK)
    with pytest.raises(DataError, match=rf"rows\.jsonl: No such file.*; the rows are kept in {tmp_path}/rows"):
        write_sorted(tmp_path / "rows", tmp_path / "none" / "rows.jsonl")


# --- parquet ----------------------------------------------------------------------------------------------------------


def test_parquet(tmp_path: Path) -> None:
    from pyarrow import parquet

    write(tmp_path / "rows", FAILED, OK)
    target = tmp_path / "rows.parquet"
    assert write_sorted(tmp_path / "rows", target) == 2
    ok, error = parquet.read_table(target).to_pylist()
    assert (ok["id"], ok["index"], ok["trial"], ok["status"]) == ("a", 0, 0, "ok")
    assert json.loads(ok["request"]) == OK.request
    answer = OK.response
    assert answer is not None
    assert {name: ok["response"][name] for name in ("text", "finish_reason", "reasoning_content")} == {
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "reasoning_content": answer.reasoning_content,
    }
    assert json.loads(ok["response"]["tool_calls"]) == answer.tool_calls
    assert json.loads(ok["response"]["usage"]) == answer.usage
    assert (ok["response"]["latency_s"], ok["response"]["attempts"]) == (0.25, 2)
    assert ok["scores"] == [{"scorer": "number", "values": [1.0, 0.0], "answers": ["4", None], "statuses": None}]
    assert ok["error"] is None
    assert error["response"] is None
    assert error["error"] == {"type": "http_400", "message": "too long", "attempts": 1, "traceback": None}
    assert error["scores"] == []


def test_parquet_has_every_field_of_a_row() -> None:
    def names(of: type) -> list[str]:
        return [field.name for field in dataclasses.fields(of)]

    schema = row_schema()
    assert schema.names == names(Row)
    assert [field.name for field in schema.field("response").type] == names(Response)
    assert [field.name for field in schema.field("error").type] == names(RowError)
    assert [field.name for field in schema.field("scores").type.value_type] == ["scorer", *names(Score)]
    team = row_schema(team=True)
    assert team.names == names(AgentRow)
    assert [field.name for field in team.field("history").type.value_type] == names(Entry)


def test_parquet_of_a_team(tmp_path: Path) -> None:
    from pyarrow import parquet

    call = Call("llm", 0.5, {"prompt_tokens": 3}, "http://a/v1")
    entry = Entry("critic", "No.", 0.0, 0.5, {"verdict": False}, calls=[call])
    error = RowError("KeyError", "critic: 'x'", 1, "Traceback ...")
    rows = [
        AgentRow("a", 0, 0, "ok", {"task": {"q": 1}}, history=[entry], termination="end", metrics={"agreed": 1.0}),
        AgentRow("b", 1, 0, "error", {"task": {"q": 2}}, error=error, termination="error", tokens={"prompt_tokens": 3}),
    ]
    write_all(tmp_path / "rows", rows)
    assert write_sorted(tmp_path / "rows", tmp_path / "rows.parquet") == 2
    first, second = parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    assert first["history"][0]["agent"] == "critic"
    assert json.loads(first["history"][0]["data"]) == {"verdict": False}
    assert json.loads(first["history"][0]["calls"])[0]["usage"] == {"prompt_tokens": 3}
    assert json.loads(first["metrics"]) == {"agreed": 1.0}
    assert (second["termination"], second["error"]["traceback"]) == ("error", "Traceback ...")


def test_parquet_comes_in_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyarrow import parquet

    monkeypatch.setattr("matrix.data.row_table._ROW_GROUP_BYTES", 2000)
    write_all(tmp_path / "rows", (row(index) for index in reversed(range(100))))
    assert write_sorted(tmp_path / "rows", tmp_path / "rows.parquet") == 100
    with parquet.ParquetFile(tmp_path / "rows.parquet") as table:
        assert 3 < table.num_row_groups < 20
        assert table.read(["index"]).column("index").to_pylist() == list(range(100))


def test_parquet_without_rows_has_its_columns(tmp_path: Path) -> None:
    from pyarrow import parquet

    assert write_sorted(tmp_path, tmp_path / "rows.parquet") == 0
    assert parquet.read_schema(tmp_path / "rows.parquet").names[:3] == ["id", "index", "trial"]


def test_a_row_that_parquet_cannot_hold_leaves_nothing_behind(tmp_path: Path) -> None:
    part = write(tmp_path / "rows", row(0))
    part.write_bytes(part.read_bytes() + b'{"id":"b","index":1,"trial":0,"status":"ok"}\n')
    with pytest.raises(DataError, match="can't be written as parquet"):
        write_sorted(tmp_path / "rows", tmp_path / "rows.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]
