"""Keys that are done: exact, whatever stands in a part, and in little memory."""

from __future__ import annotations

import io
import itertools
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrix.data.parts import DoneKeys, decode_row, done_keys, heads
from matrix.data.rows import RowKey
from matrix.data.sorting import read_rows
from matrix.errors import DataError
from tests.data.journal_rows import FAILED, OK, failed, row, write


def test_keys_are_exact_whatever_the_name(tmp_path: Path) -> None:
    names = ["x", 'q"uo\\te', "new\nline", "ä😀", '","trial":9,"status":"', "\\", " ", "\u2028", "x" * 10_000]
    rows = [row(index, trial=index % 2, id=name) for index, name in enumerate(names)]
    write(tmp_path, *rows)
    assert done_keys(tmp_path) == {one.key for one in rows}
    assert [one.id for one in read_rows(tmp_path)] == names


def test_a_name_may_repeat(tmp_path: Path) -> None:
    rows = [row(0, id="same"), row(1, id="same")]
    write(tmp_path, *rows)
    assert done_keys(tmp_path) == {RowKey(0, 0), RowKey(1, 0)}
    assert list(read_rows(tmp_path)) == rows


def test_no_folder_means_no_keys(tmp_path: Path) -> None:
    assert done_keys(tmp_path / "none") == set()


def test_retrying_errors_leaves_out_what_has_no_answer(tmp_path: Path) -> None:
    write(tmp_path, row(0), failed(1), failed(2), row(2), failed(3), writer="a")
    write(tmp_path, row(3), failed(4), failed(0), writer="b")
    assert done_keys(tmp_path) == {(index, 0) for index in range(5)}
    assert done_keys(tmp_path, retry_errors=True) == {(0, 0), (2, 0), (3, 0)}


def test_a_damaged_line_in_the_middle_counts_as_not_done(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    part = write(tmp_path, OK, FAILED, row(2))
    lines = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(lines[0] + bytes(len(lines[1]) - 1) + b"\n" + lines[2])
    assert done_keys(tmp_path) == {OK.key, RowKey(2, 0)}
    assert [one.id for one in read_rows(tmp_path)] == ["a", "2"]
    assert f"at byte {len(lines[0])} is not a row" in caplog.text


FOREIGN = {
    "empty": b"\n",
    "another object": b'{"a":1}\n',
    "a number that no row has": orjson.dumps(row(0)).replace(b'"index":0', b'"index":' + b"9" * 30) + b"\n",
    "another status": orjson.dumps(row(0)).replace(b'"ok"', b'"so"') + b"\n",
    "the end of a row": orjson.dumps(row(0))[20:] + b"\n",
}


@pytest.mark.parametrize("line", FOREIGN)
def test_lines_of_something_else_are_passed_over(tmp_path: Path, line: str, caplog: pytest.LogCaptureFixture) -> None:
    part = write(tmp_path, row(1))
    part.write_bytes(FOREIGN[line] + part.read_bytes())
    assert done_keys(tmp_path) == {(1, 0)}
    assert list(read_rows(tmp_path)) == [row(1)]
    assert "at byte 0 is not a row" in caplog.text


def test_a_part_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "part-0.jsonl").mkdir()
    for read in (done_keys, lambda folder: list(read_rows(folder))):
        with pytest.raises(DataError, match=r"part-0\.jsonl.*: Is a directory"):
            read(tmp_path)


@pytest.mark.parametrize("line", [b"", b"[]", b"{}", b"{", b'{"id":"a","index":0,"trial":0,"status":"ok","more":1}'])
def test_a_line_of_something_else_is_no_row(line: bytes) -> None:
    with pytest.raises(DataError, match="not a row of this version"):
        decode_row(line)


@given(st.lists(st.tuples(st.integers(0, 200_000) | st.integers(0, 10**18 - 1), st.integers(0, 10**9 - 1))))
def test_done_keys_are_a_set(keys: list[tuple[int, int]]) -> None:
    done = DoneKeys(keys)
    assert len(done) == len(set(keys))
    assert set(done) == set(keys)
    near = {(max(0, index + step), trial + more) for index, trial in keys for step in (-1, 0, 1) for more in (0, 1)}
    assert {key for key in near if key in done} == near & set(keys)


def test_a_key_takes_about_a_bit() -> None:
    tracemalloc.start()
    done = DoneKeys(itertools.product(range(100_000), range(2)))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(done) == 200_000
    assert size < 2 * 200_000 / 8


def test_a_reader_that_meets_half_a_line_stops_there_though_the_file_grows(tmp_path: Path) -> None:
    """Half a line is what a reader sees of a write that is under way: the kernel makes its pages visible one by one."""
    first, second, third = write(tmp_path, row(0), row(1), row(2)).read_bytes().splitlines(keepends=True)

    class Growing(io.BytesIO):
        """What the lines of a file are to who reads on after its end."""

        def __iter__(self) -> Iterator[bytes]:
            return iter([first, second[:60], second[60:], third])

    class Part:
        def open(self, _mode: str, buffering: int) -> Growing:
            return Growing()

    assert [index for _, _, index, _, _ in heads(cast("Path", Part()))] == [0]
