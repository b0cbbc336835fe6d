from __future__ import annotations

import gzip
import hashlib
import json
import re
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from matrix.data.readers import BadRow, Dataset, load
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
    rows = list(dataset.examples)
    assert all(isinstance(row, Example) for row in rows), rows
    return [row.columns for row in rows if isinstance(row, Example)]


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
    assert [row.index for row in dataset.examples] == [0, 1, 2]
    assert dataset.total == 3


def test_names_come_from_the_id_key(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", LINES)
    assert [row.id for row in read(file, id_key="name").examples] == ["a", "b", "c"]
    assert [row.id for row in read(file, id_key="answer").examples] == ["2", "3", "4"]
    nested = write(tmp_path / "b.jsonl", '{"meta": {"id": "x"}}\n{"meta.id": "y"}\n')
    assert [row.id for row in read(nested, id_key="meta.id").examples] == ["x", "y"]


def test_a_name_is_a_label_and_may_be_there_twice(tmp_path: Path) -> None:
    rows = read(write(tmp_path / "a.jsonl", '{"a": 1}\n{"a": "1"}\n'), id_key="a", on_bad_row="stop").examples
    assert [(row.id, row.index) for row in rows] == [("1", 0), ("1", 1)]


def test_a_limit_ends_the_reading(tmp_path: Path) -> None:
    assert read(write(tmp_path / "b.jsonl", LINES), limit=99).total == 3
    assert [row.id for row in read(tmp_path / "b.jsonl", limit=1).examples] == ["0"]


def test_several_files_are_one_data_set(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        write(tmp_path / f"part-{number}.jsonl", f'\n{{"n": {number}}}\n')
    write(tmp_path / "last.csv", "n\n11\n12\n")
    dataset = load(DatasetSpec(name="x", path=[str(tmp_path / "part-*.jsonl"), str(tmp_path / "last.csv")]))
    assert columns(dataset) == [{"n": 1}, {"n": 2}, {"n": 10}, {"n": "11"}, {"n": "12"}]
    assert [row.id for row in dataset.examples] == ["0", "1", "2", "3", "4"]
    assert dataset.total == 5
    some = load(DatasetSpec(name="x", path=str(tmp_path / "part-*.jsonl"), limit=2))
    assert (columns(some), some.total) == ([{"n": 1}, {"n": 2}], 2)


def test_the_fingerprint_of_several_files_is_that_of_their_content_in_order(tmp_path: Path) -> None:
    first, second = write(tmp_path / "1.jsonl", "{}\n"), write(tmp_path / "2.jsonl", LINES)

    def fingerprint(*files: Path) -> str:
        return load(DatasetSpec(name="x", path=[str(file) for file in files])).fingerprint

    before = fingerprint(first, second)
    assert before == fingerprint(first, second)
    assert fingerprint(first) == "sha256:" + hashlib.sha256(first.read_bytes()).hexdigest()
    assert before != fingerprint(second, first)
    write(second, LINES + "{}\n")
    assert before != fingerprint(first, second)


def test_bad_rows_of_several_files_name_theirs(tmp_path: Path) -> None:
    for number in (1, 2):
        write(tmp_path / f"{number}.jsonl", "{}\n{\n")
    rows = read(tmp_path / "*.jsonl").examples
    places = [row.place for row in rows if isinstance(row, BadRow)]
    assert places == [f"{tmp_path}/1.jsonl:2", f"{tmp_path}/2.jsonl:2"]


def test_memory_stays_flat(tmp_path: Path) -> None:
    line = json.dumps({"text": "x" * 1000}) + "\n"
    write(tmp_path / "a.jsonl", line * 10_000)
    write(tmp_path / "a.csv", "text\n" + ("y" * 1000 + "\n") * 10_000)
    tracemalloc.start()
    for name in ("a.jsonl", "a.csv"):
        dataset = read(tmp_path / name, on_bad_row="stop")
        assert sum(1 for _ in dataset.examples) == dataset.total == 10_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


def test_a_file_in_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_package").mkdir()
    write(tmp_path / "some_package" / "rows.jsonl", LINES)
    monkeypatch.syspath_prepend(tmp_path)
    assert load(DatasetSpec(name="x", path="package:some_package/rows.jsonl")).total == 3


BAD_ROWS = {
    "broken line": ("a.jsonl", '{"a": 1}\n{"a": \n', {}, r"a\.jsonl:2: not JSON: .*column"),
    "half a line": ("a.jsonl", '{"a": 1}\n\n{"a": 2', {}, r"a\.jsonl:3: not JSON"),
    "line of something else": ("a.jsonl", '{"a": 1}\n[1]\n', {}, r"a\.jsonl:2: a row is an object.* a list"),
    "not UTF-8": ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}', {}, r"a\.jsonl:2: not JSON"),
    "NaN": ("a.jsonl", '{"a": 1}\n{"a": NaN}', {}, r"a\.jsonl:2: not JSON"),
    "no id": ("a.jsonl", '{"a": 1}\n{"b": 1, "c": 2}', {"id_key": "a"}, r"a\.jsonl:2: .*id_key=a \(columns: b, c\)"),
    "id that is null": ("a.jsonl", '{"a": 1}\n{"a": null}', {"id_key": "a"}, "jsonl:2: no value at dataset.id_key=a"),
    "id that is a list": ("a.jsonl", '{"a": 1}\n{"a": []}', {"id_key": "a"}, "must hold text or whole numbers"),
    "id that is empty": ("a.jsonl", '{"a": 1}\n{"a": ""}', {"id_key": "a"}, "must hold text or whole numbers"),
    "json item": ("a.json", "[{}, 3]", {}, r"a\.json item 2: a row is an object.* an? int"),
    "csv too long": ("a.csv", "a,b\n1,2\n1,2,3\n", {}, r"a\.csv:3: 3 fields, the header has 2 columns"),
    "csv too short": ("a.csv", "a,b\n1,2\n1\n", {}, r"a\.csv:3: 1 fields"),
    "csv quotes": ("a.csv", 'a\n1\n"1"2\n', {}, r"a\.csv:3: not CSV"),
    "csv quote without end": ("a.csv", 'a\n1\n"2\n', {}, r"a\.csv:3: not CSV: unexpected end of data"),
}


@pytest.mark.parametrize("problem", BAD_ROWS)
def test_a_bad_row_keeps_its_place_and_says_where_and_what(tmp_path: Path, problem: str) -> None:
    name, content, options, message = BAD_ROWS[problem]
    file = write(tmp_path / name, content)
    dataset = read(file, **options)
    good, bad = dataset.examples
    assert isinstance(good, Example)
    assert isinstance(bad, BadRow)
    assert (bad.id, bad.index, dataset.total) == ("1", 1, 2)
    assert bad.place.startswith(str(file))
    assert re.search(message, str(bad))
    with pytest.raises(DataError, match=message):
        read(file, on_bad_row="stop", **options)


def test_rows_after_a_bad_one_are_read(tmp_path: Path) -> None:
    for name, content in {"a.jsonl": '{"a": "1"}\n{\n{"a": "3"}\n', "a.csv": 'a\n1\n"x"y\n3\n'}.items():
        rows = list(read(write(tmp_path / name, content)).examples)
        assert [row.index for row in rows] == [0, 1, 2]
        assert isinstance(rows[1], BadRow)
        assert rows[2] == Example("2", 2, {"a": "3"})


def test_a_wrong_file_is_refused_before_anything_starts(tmp_path: Path) -> None:
    message = r"dataset.path=.*: none of the first rows can be read; .*a\.jsonl:1: not JSON"
    for rows in (1, 100, 1000):
        with pytest.raises(DataError, match=message):
            read(write(tmp_path / "a.jsonl", "prose\n" * rows))
    with pytest.raises(
        DataError, match=r"first rows can be read; .*:1: no value at dataset.id_key=nmae \(columns: name"
    ):
        read(write(tmp_path / "b.jsonl", LINES), id_key="nmae")
    dataset = read(write(tmp_path / "c.jsonl", "prose\n" * 99 + "{}\n"))
    assert dataset.total == 100


def test_a_bad_row_beyond_the_limit_is_none(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", LINES + "{broken")
    for how in ("stop", "error"):
        dataset = read(file, limit=2, on_bad_row=how)
        assert [row.id for row in dataset.examples] == ["0", "1"]
        assert dataset.total == 2


UNREADABLE = {
    "empty file": ("a.jsonl", "", r"dataset.path=.*a\.jsonl: the data set is empty"),
    "only blank lines": ("a.jsonl", "\n\n", "the data set is empty"),
    "json object": ("a.json", '{"a": 1}', r"a\.json: holds a dict, not a list"),
    "json lines": ("a.json", '{"a": 1}\n{"a": 2}\n', r"a\.json:2: not JSON: .*one object per line is \.jsonl"),
    "json empty": ("a.json", "[]", "the data set is empty"),
    "csv twice": ("a.csv", "a,a\n1,2\n", r"a\.csv:1: two columns have the same name: a, a"),
    "csv header": ("a.csv", '"a"b\n1\n', r"a\.csv:1: not CSV"),
    "csv header alone": ("a.csv", "a,b\n", "the data set is empty"),
    "csv empty": ("a.csv", "", "the data set is empty"),
    "csv not UTF-8": ("a.csv", b"a\n\xff\n", r"a\.csv: is not UTF-8"),
    "no parquet": ("a.parquet", "PAR1 no", r"a\.parquet: not parquet"),
    "no gzip": ("a.jsonl.gz", LINES, r"a\.jsonl\.gz: cannot be read"),
    "half a gzip": ("a.jsonl.gz", gzip.compress(LINES.encode())[:-20], r"a\.jsonl\.gz: cannot be read"),
    "no zstd": ("a.jsonl.zst", LINES, r"a\.jsonl\.zst: cannot be read"),
}


@pytest.mark.parametrize("problem", UNREADABLE)
def test_a_file_that_cannot_be_read_is_known_before_anything_starts(tmp_path: Path, problem: str) -> None:
    name, content, message = UNREADABLE[problem]
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / name, content))


def test_half_a_zst_is_noticed(tmp_path: Path) -> None:
    packed = pack_zst("".join(f'{{"n": "{number * 7919}"}}\n' for number in range(10_000)))
    with pytest.raises(DataError, match=r"a\.jsonl\.zst: cannot be read"):
        read(write(tmp_path / "a.jsonl.zst", packed[:-200]))


def test_packed_files_may_have_several_parts(tmp_path: Path) -> None:
    halves = LINES.splitlines(keepends=True)
    twice = gzip.compress(halves[0].encode()) + gzip.compress("".join(halves[1:]).encode())
    assert columns(read(write(tmp_path / "a.jsonl.gz", twice))) == ROWS
    frames = pack_zst(halves[0]) + pack_zst("".join(halves[1:]))
    assert columns(read(write(tmp_path / "a.jsonl.zst", frames))) == ROWS


def test_a_missing_file_names_the_key(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset.path=.*nope\.jsonl: no such file"):
        read(tmp_path / "nope.jsonl")
    with pytest.raises(DataError, match=r"dataset.path=.*a folder"):
        read(tmp_path)


def test_parquet_reads_no_further_than_the_limit(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"n": list(range(10_000)), "s": ["x"] * 10_000})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=1000)
    assert [row["n"] for row in columns(read(tmp_path / "a.parquet", limit=3))] == [0, 1, 2]
    assert read(tmp_path / "a.parquet").total == 10_000
