"""The writer: what it leaves, whatever happens to it."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from matrix.data.journal import Journal
from matrix.data.parts import decode_row, done_keys
from matrix.data.sorting import read_rows
from matrix.errors import DataError
from tests.data.journal_rows import FAILED, OK, row, write


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    part = write(tmp_path / "rows", OK, FAILED)
    assert part.name == "part-0.jsonl"
    assert list(read_rows(tmp_path / "rows")) == [OK, FAILED]
    assert [decode_row(line) for line in part.read_bytes().splitlines()] == [OK, FAILED]


def test_a_row_is_there_as_soon_as_it_is_appended(tmp_path: Path) -> None:
    with Journal(tmp_path, "0") as journal:
        journal.append(OK)
        assert list(read_rows(tmp_path)) == [OK]
        assert done_keys(tmp_path) == {OK.key}


def test_appending_goes_on_where_it_ended(tmp_path: Path) -> None:
    write(tmp_path, OK)
    write(tmp_path, FAILED)
    assert list(read_rows(tmp_path)) == [OK, FAILED]


def test_what_json_does_not_know_is_kept_as_text(tmp_path: Path) -> None:
    write(tmp_path, row(0, request={"path": Path("/x")}))
    assert next(read_rows(tmp_path)).request == {"path": "/x"}


def test_a_row_that_cannot_be_written_says_which(tmp_path: Path) -> None:
    with Journal(tmp_path, "0") as journal:
        with pytest.raises(DataError, match="row 7, trial 2"):
            journal.append(row(7, trial=2, request={"seed": 2**70}))
        journal.append(OK)
    assert list(read_rows(tmp_path)) == [OK]


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


def test_a_file_that_a_kill_left_half_written_is_removed_by_the_next_start(tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    write(rows, OK)
    (tmp_path / ".rows.jsonl.half").write_text("half")
    (tmp_path / "rows.jsonl").write_text("whole")
    write(rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows", "rows.jsonl"]


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


# --- fsync ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Size of the part at each fsync."""
    sizes: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda part: sizes.append(os.fstat(part).st_size))
    return sizes


@pytest.mark.parametrize(("every_rows", "syncs"), [(1, 8), (3, 3), (None, 1)])
def test_fsync_by_rows(tmp_path: Path, synced: list[int], every_rows: int | None, syncs: int) -> None:
    with Journal(tmp_path, "0", fsync_every_s=None, fsync_every_rows=every_rows) as journal:
        for index in range(7):
            journal.append(row(index))
    assert len(synced) == syncs, "after so many rows each, and at the end"
    assert synced[-1] == journal.path.stat().st_size


def test_fsync_by_time_comes_by_itself_and_only_if_there_is_something(tmp_path: Path, synced: list[int]) -> None:
    with Journal(tmp_path, "0", fsync_every_s=0.01) as journal:
        for index in range(2):
            journal.append(row(index))
            _wait_until(lambda: bool(synced) and synced[-1] == journal.path.stat().st_size)
        syncs = len(synced)
        time.sleep(0.1)
        assert len(synced) == syncs
    assert syncs == 2


def test_a_disk_that_refuses_to_sync_stops_the_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(part: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", refuse)
    journal = Journal(tmp_path, "0", fsync_every_s=0.01)
    journal.append(row(0))

    _wait_until(lambda: journal._failure is not None)
    with pytest.raises(DataError, match=r"part-0\.jsonl: Input/output error; rows of the last seconds may be lost"):
        journal.append(row(1))
    with pytest.raises(DataError, match="Input/output error"):
        journal.close()
    monkeypatch.undo()
    write(tmp_path, row(2))
    assert [one.index for one in read_rows(tmp_path)] == [0, 2]


def _wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.001)
