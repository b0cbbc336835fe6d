from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from matrix.data.readers import Dataset, load
from matrix.data.rows import Example
from matrix.errors import DataError
from matrix.spec.workload import DatasetSpec

ROWS: list[dict[str, Any]] = [
    {"name": "a", "question": "1 + 1?", "answer": 2},
    {"name": "b", "question": 'ä\n😀, "so"', "answer": 3},
    {"name": "c", "question": "", "answer": 4},
]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def read(path: Path, **options: Any) -> Dataset:
    return load(DatasetSpec(name="x", path=str(path), **options))


def write(file: Path, content: str | bytes) -> Path:
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def columns(dataset: Dataset) -> list[dict[str, Any]]:
    return [example.columns for example in dataset.examples]


def write_csv(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    quoted = [[str(value).replace('"', '""') for value in row.values()] for row in rows]
    return write(file, "\r\n".join([",".join(rows[0]), *(",".join(f'"{value}"' for value in row) for row in quoted)]))


def pack_zst(content: str) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    packed = pyarrow.compress(content.encode(), codec="zstd", asbytes=True)
    assert isinstance(packed, bytes)
    return packed


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".json.gz", ".parquet"])
def test_rows_come_as_they_are_in_every_format(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"rows{ending}"
    content = LINES if ".jsonl" in ending else json.dumps(ROWS)
    if ending == ".parquet":
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(ROWS), file)
    elif ending.endswith(".gz"):
        write(file, gzip.compress(content.encode()))
    elif ending.endswith(".zst"):
        write(file, pack_zst(content))
    else:
        write(file, content)
    dataset = read(file)
    assert list(dataset.examples) == [Example(str(index), index, row) for index, row in enumerate(ROWS)]
    assert dataset.total == 3
    assert dataset.fingerprint == "sha256:" + hashlib.sha256(file.read_bytes()).hexdigest()


def test_csv_is_text(tmp_path: Path) -> None:
    dataset = read(write_csv(tmp_path / "rows.csv", ROWS))
    assert columns(dataset) == [{key: str(value) for key, value in row.items()} for row in ROWS]


def test_csv_with_a_long_field(tmp_path: Path) -> None:
    assert columns(read(write(tmp_path / "a.csv", "text\n" + "x" * 1_000_000))) == [{"text": "x" * 1_000_000}]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_byte_order_mark_is_no_content(tmp_path: Path, name: str) -> None:
    content = {"a.jsonl": '{"a": "1"}', "a.json": '[{"a": "1"}]', "a.csv": "a\n1\n"}[name]
    assert columns(read(write(tmp_path / name, b"\xef\xbb\xbf" + content.encode()))) == [{"a": "1"}]


def test_examples_can_be_read_again(tmp_path: Path) -> None:
    dataset = read(write(tmp_path / "a.jsonl", LINES))
    assert list(dataset.examples) == list(dataset.examples)


def test_blank_lines_are_no_rows(tmp_path: Path) -> None:
    dataset = read(write(tmp_path / "a.jsonl", f"\n{LINES}\r\n  \n"))
    assert [example.index for example in dataset.examples] == [0, 1, 2]


def test_names_come_from_the_id_key(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", LINES)
    assert [example.id for example in read(file, id_key="name").examples] == ["a", "b", "c"]
    assert [example.id for example in read(file, id_key="answer").examples] == ["2", "3", "4"]


def test_a_limit_ends_the_reading(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", LINES + "{broken")
    dataset = read(file, limit=2)
    assert dataset.total == len(list(dataset.examples)) == 2
    assert read(write(tmp_path / "b.jsonl", LINES), limit=99).total == 3


def test_a_file_in_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_package").mkdir()
    write(tmp_path / "some_package" / "rows.jsonl", LINES)
    monkeypatch.syspath_prepend(tmp_path)
    assert load(DatasetSpec(name="x", path="package:some_package/rows.jsonl")).total == 3


PROBLEMS = {
    "broken line": ("a.jsonl", '{"a": 1}\n{"a": \n', {}, r"a\.jsonl:2: not JSON: .*column"),
    "half a line": ("a.jsonl", '{"a": 1}\n{"a": 2', {}, r"a\.jsonl:2: not JSON"),
    "line of something else": ("a.jsonl", '{"a": 1}\n[1]\n', {}, r"a\.jsonl:2: a row is an object.* a list"),
    "not UTF-8": ("a.jsonl", b'{"a": "\xff"}', {}, r"a\.jsonl:1: not JSON"),
    "empty file": ("a.jsonl", "", {}, r"dataset.path=.*a\.jsonl: the data set is empty"),
    "only blank lines": ("a.jsonl", "\n\n", {}, "the data set is empty"),
    "missing id": ("a.jsonl", '{"a": 1, "b": 2}', {"id_key": "name"}, r"a\.jsonl:1: .*id_key=name \(columns: a, b\)"),
    "id in some rows": ("a.jsonl", '{"a": 1}\n{"b": 1}', {"id_key": "a"}, r"a\.jsonl:2: no column"),
    "id that is null": ("a.jsonl", '{"a": null}', {"id_key": "a"}, "must hold text or whole numbers, not None"),
    "id that is a list": ("a.jsonl", '{"a": []}', {"id_key": "a"}, "must hold text or whole numbers"),
    "id that is empty": ("a.jsonl", '{"a": ""}', {"id_key": "a"}, "must hold text or whole numbers"),
    "id twice": ("a.jsonl", '{"a": 1}\n\n{"a": "1"}', {"id_key": "a"}, r"a\.jsonl:3: a=1 names .* a\.jsonl:1"),
    "json object": ("a.json", '{"a": 1}', {}, r"a\.json: holds a dict, not a list"),
    "json lines": ("a.json", '{"a": 1}\n{"a": 2}\n', {}, r"a\.json:2: not JSON: .*one object per line is \.jsonl"),
    "json item": ("a.json", "[{}, 3]", {}, r"a\.json item 2: a row is an object.* an? int"),
    "json empty": ("a.json", "[]", {}, "the data set is empty"),
    "csv too long": ("a.csv", "a,b\n1,2\n1,2,3\n", {}, r"a\.csv:3: 3 fields, the header has 2 columns"),
    "csv too short": ("a.csv", "a,b\n1\n", {}, r"a\.csv:2: 1 fields"),
    "csv twice": ("a.csv", "a,a\n1,2\n", {}, r"a\.csv:1: two columns have the same name: a, a"),
    "csv quotes": ("a.csv", 'a\n"1"2\n', {}, r"a\.csv:2: not CSV"),
    "csv header alone": ("a.csv", "a,b\n", {}, "the data set is empty"),
    "csv empty": ("a.csv", "", {}, "the data set is empty"),
    "csv not UTF-8": ("a.csv", b"a\n\xff\n", {}, r"a\.csv: is not UTF-8"),
    "no parquet": ("a.parquet", "PAR1 no", {}, r"a\.parquet: not parquet"),
    "no gzip": ("a.jsonl.gz", LINES, {}, r"a\.jsonl\.gz: cannot be read"),
    "half a gzip": ("a.jsonl.gz", gzip.compress(LINES.encode())[:-20], {}, r"a\.jsonl\.gz: cannot be read"),
    "no zstd": ("a.jsonl.zst", LINES, {}, r"a\.jsonl\.zst: cannot be read"),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_problem_says_where_and_what(tmp_path: Path, problem: str) -> None:
    name, content, options, message = PROBLEMS[problem]
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / name, content), **options)


def test_a_missing_file_names_the_key(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset.path=.*nope\.jsonl: no such file"):
        read(tmp_path / "nope.jsonl")
    with pytest.raises(DataError, match=r"dataset.path=.*a folder"):
        read(tmp_path)


def test_parquet_reads_no_further_than_the_limit(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"n": list(range(10_000)), "s": ["x"] * 10_000})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=1000)
    assert [example.columns["n"] for example in read(tmp_path / "a.parquet", limit=3).examples] == [0, 1, 2]
    assert read(tmp_path / "a.parquet").total == 10_000
