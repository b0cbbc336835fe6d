from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import orjson
import pytest

from matrix.data.journal import Journal, _heads, decode_row, done_keys, read_rows, write_sorted
from matrix.data.rows import Response, Row, RowError, RowKey, Score
from matrix.errors import DataError

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


def write(folder: Path, *rows: Row, writer: str = "0") -> Path:
    with Journal(folder, writer) as journal:
        for one in rows:
            journal.append(one)
    return journal.path


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    part = write(tmp_path / "rows", OK, FAILED)
    assert part.name == "part-0.jsonl"
    assert list(read_rows(tmp_path / "rows")) == [OK, FAILED]
    assert [decode_row(line) for line in part.read_bytes().splitlines()] == [OK, FAILED]


def test_a_row_is_there_as_soon_as_it_is_appended(tmp_path: Path) -> None:
    with Journal(tmp_path, "0") as journal:
        journal.append(OK)
        assert list(read_rows(tmp_path)) == [OK]
        assert done_keys(tmp_path) == {RowKey("a", 0)}


def test_appending_goes_on_where_it_ended(tmp_path: Path) -> None:
    write(tmp_path, OK)
    write(tmp_path, FAILED)
    assert list(read_rows(tmp_path)) == [OK, FAILED]


def test_keys_are_exact_whatever_the_name(tmp_path: Path) -> None:
    names = ["x", 'q"uo\\te', "new\nline", "ä😀", '","trial":9,"status":"', "\\", " ", "\u2028", "x" * 10_000]
    rows = [row(index, trial=index % 2, id=name) for index, name in enumerate(names)]
    write(tmp_path, *rows)
    assert done_keys(tmp_path) == {one.key for one in rows}
    assert [one.key for one in read_rows(tmp_path)] == [one.key for one in rows]


def test_what_json_does_not_know_is_kept_as_text(tmp_path: Path) -> None:
    write(tmp_path, row(0, request={"path": Path("/x")}))
    assert next(read_rows(tmp_path)).request == {"path": "/x"}


def test_a_row_that_cannot_be_written_says_which(tmp_path: Path) -> None:
    with Journal(tmp_path, "0") as journal:
        with pytest.raises(DataError, match="row 7, trial 2"):
            journal.append(row(7, trial=2, request={"seed": 2**70}))
        journal.append(OK)
    assert list(read_rows(tmp_path)) == [OK]


def test_no_folder_means_no_rows(tmp_path: Path) -> None:
    assert done_keys(tmp_path / "none") == set()
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


def test_sorting_many_shuffled_rows(tmp_path: Path) -> None:
    keys = [(index, trial) for index in range(500) for trial in range(3)]
    shuffled = random.Random(0).sample(keys, len(keys))
    for writer in range(3):
        write(tmp_path, *(row(*key) for key in shuffled[writer::3]), writer=str(writer))
    assert [(one.index, one.trial) for one in read_rows(tmp_path)] == keys


def test_a_sorted_file_that_cannot_be_written_says_where_the_rows_are(tmp_path: Path) -> None:
    write(tmp_path / "rows", OK)
    with pytest.raises(DataError, match=rf"rows\.jsonl: No such file.*; the rows are kept in {tmp_path}/rows"):
        write_sorted(tmp_path / "rows", tmp_path / "none" / "rows.jsonl")


TAILS = {
    "half a row": orjson.dumps(FAILED)[:40],
    "a row without its newline": orjson.dumps(FAILED),
    "zeros": bytes(5000),
    "more zeros than a block": bytes(200_000),
    "not JSON": b'{"id":"b","index":1,\n',
    "two broken lines": b'\0\0\0\n{"id":"b"\n',
}


@pytest.mark.parametrize("tail", TAILS)
def test_a_torn_tail_is_not_there_for_readers_and_cut_by_the_writer(tmp_path: Path, tail: str) -> None:
    part = write(tmp_path, OK)
    sound = part.read_bytes()
    part.write_bytes(sound + TAILS[tail])
    assert list(read_rows(tmp_path)) == [OK]
    assert done_keys(tmp_path) == {OK.key}
    write(tmp_path, row(5))
    assert part.read_bytes() == sound + orjson.dumps(row(5)) + b"\n"


def test_a_part_that_is_torn_from_the_start(tmp_path: Path) -> None:
    (tmp_path / "part-0.jsonl").write_bytes(b'{"id":')
    write(tmp_path, OK)
    assert list(read_rows(tmp_path)) == [OK]


def test_a_long_last_row_is_kept(tmp_path: Path) -> None:
    long = row(1, request={"prompt": "x" * 300_000})
    write(tmp_path, OK, long)
    write(tmp_path, row(2))
    assert list(read_rows(tmp_path)) == [OK, long, row(2)]


def test_a_damaged_line_in_the_middle_counts_as_not_done(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    part = write(tmp_path, OK, FAILED, row(2))
    lines = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(lines[0] + bytes(len(lines[1]) - 1) + b"\n" + lines[2])
    assert done_keys(tmp_path) == {OK.key, RowKey("2", 0)}
    assert [one.id for one in read_rows(tmp_path)] == ["a", "2"]
    assert f"at byte {len(lines[0])} is not a row" in caplog.text


@pytest.mark.parametrize("line", [b"", b"[]", b"{}", b"{", b'{"id":"a","index":0,"trial":0,"status":"ok","more":1}'])
def test_a_line_of_something_else_is_no_row(line: bytes) -> None:
    with pytest.raises(DataError, match="not a row of this version"):
        decode_row(line)


def test_two_writers_of_one_part_are_refused(tmp_path: Path) -> None:
    rows = tmp_path / "run" / "rows"
    with Journal(rows, "0") as journal:
        for _ in range(2):
            with pytest.raises(DataError, match=rf"run dir {tmp_path}/run is in use: pid {os.getpid()} on .* part-0"):
                Journal(rows, "0")
        list(read_rows(rows))
        with pytest.raises(DataError, match="in use"):
            Journal(rows, "0")
        write(rows, FAILED, writer="1")
        journal.append(OK)
    write(rows, row(7))
    assert len(done_keys(rows)) == 3


def test_closing_twice_is_fine(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "0")
    journal.close()
    journal.close()
    write(tmp_path, OK)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text("in the way")
    with pytest.raises(DataError, match=r"part-0\.jsonl: "):
        Journal(tmp_path / "rows", "0")


def test_a_part_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "part-0.jsonl").mkdir()
    for read in (done_keys, lambda folder: list(read_rows(folder))):
        with pytest.raises(DataError, match=r"part-0\.jsonl: Is a directory"):
            read(tmp_path)


@pytest.mark.parametrize(("every_s", "syncs"), [(0, 5), (3600, 1)])
def test_fsync_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every_s: float, syncs: int) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    with Journal(tmp_path, "0", fsync_every_s=every_s) as journal:
        for index in range(4):
            journal.append(row(index))
    assert len(synced) == syncs, "after each row or not at all, and at the end"


WRITER = """
import sys
from pathlib import Path
from matrix.data.journal import Journal
from matrix.data.rows import Row
start = int(sys.argv[2])
with Journal(Path(sys.argv[1]), "0") as journal:
    for index in range(start, 10**9):
        journal.append(Row(str(index), index, 0, "ok", {"prompt": "x" * (index * 7919 % 4_000)}))
        print(index, flush=True)
"""


def test_a_reader_that_meets_half_a_line_stops_there_though_the_file_grows(tmp_path: Path) -> None:
    """Half a line is what a reader sees of a write that is under way: the kernel makes its pages visible one by one."""
    first, second, third = write(tmp_path, row(0), row(1), row(2)).read_bytes().splitlines(keepends=True)

    class Growing(io.BytesIO):
        """What the lines of a file are to who reads on after its end."""

        def __iter__(self) -> Iterator[bytes]:
            return iter([first, second[:60], second[60:], third])

    class Part:
        def open(self, _mode: str) -> Growing:
            return Growing()

    assert [int(head[2]) for _, head in _heads(cast("Path", Part()))] == [0]


def test_kill_9_loses_nothing_that_was_appended(tmp_path: Path) -> None:
    """Five writers, one after the other, killed at random moments; each goes on after the last row there is."""
    chance = random.Random(1)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for _ in range(5):
        start = len(done_keys(tmp_path))
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(start)]
        log = tmp_path / "log"
        with log.open("wb") as out, subprocess.Popen(command, stdout=out, env=env) as writer:
            try:
                while not log.stat().st_size:
                    time.sleep(0.01)
                end = time.monotonic() + chance.uniform(0, 0.05)
                while time.monotonic() < end:
                    seen = sorted(key.id for key in done_keys(tmp_path))
                    assert seen == sorted(map(str, range(len(seen)))), "who reads meanwhile sees whole rows only"
            finally:
                writer.send_signal(signal.SIGKILL)
        appended = int(log.read_text().splitlines()[-1])
        indices = [one.index for one in read_rows(tmp_path)]
        assert indices == list(range(len(indices))), "none missing, none twice, none torn"
        # The row that was under way may be there too: the kill came between its write and its print.
        assert len(indices) - 1 in (appended, appended + 1)
        assert len(indices) > start


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "matrix-test", str(disk)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting a small tmpfs isn't allowed here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_leaves_a_part_that_can_be_read(small_disk: Path) -> None:
    rows, target = small_disk / "rows", small_disk / "rows.jsonl"
    target.write_text("before")
    kept: list[int] = []

    def fill(journal: Journal) -> None:
        for index in range(100):
            journal.append(row(index, request={"prompt": "x" * 3000}))
            kept.append(index)

    with Journal(rows, "0") as journal:
        with pytest.raises(DataError, match=r"part-0\.jsonl: No space left on device; all rows before"):
            fill(journal)
        assert 10 < len(kept) < 25
        assert journal.path.read_bytes().endswith(b"}\n"), "what was written of the last one is cut off"
        assert [one.index for one in read_rows(rows)] == kept
        with pytest.raises(DataError, match=r"rows\.jsonl: No space left on device; the rows are kept"):
            write_sorted(rows, target)
        assert target.read_text() == "before"
        assert sorted(path.name for path in small_disk.iterdir()) == ["rows", "rows.jsonl"]
        journal.append(row(1000))
    assert [one.index for one in read_rows(rows)] == [*kept, 1000], "a smaller row still fits"
