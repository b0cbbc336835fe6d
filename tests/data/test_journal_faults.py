"""A writer that is killed at any moment, and a disk that is full: the exact set of rows."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from matrix.data.journal import Journal
from matrix.data.parts import done_keys
from matrix.data.sorting import read_rows, write_sorted
from matrix.errors import DataError
from tests.data.journal_rows import row
from tests.small_disk import small_disk

INPUTS, TRIALS, KILLS = 40_000, 2, 20

# Works through what isn't done, as far out of order as requests in flight are; says each row that it has appended.
WRITER = f"""
import os, random, sys
from pathlib import Path
from matrix.data.journal import Journal
from matrix.data.parts import done_keys
from matrix.data.rows import Row
folder = Path(sys.argv[1])
with Journal(folder, "0") as journal:
    done = done_keys(folder)
    keys = [(i, t) for i in range({INPUTS}) for t in range({TRIALS}) if (i, t) not in done]
    keys.sort(key=lambda key: key[0] + random.random() * 64)
    for index, trial in keys:
        journal.append(Row("same", index, trial, "ok", {{"prompt": "x" * (index * 7919 % 4_000)}}))
        os.write(1, b"%d %d\\n" % (index, trial))
"""


def _start(folder: Path, log: Path) -> subprocess.Popen[bytes]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with log.open("ab") as out:
        return subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=out, env=env)


def test_kill_9_at_random_moments_and_resume_give_the_exact_set_of_rows(tmp_path: Path) -> None:
    chance = random.Random(1)
    rows, log = tmp_path / "rows", tmp_path / "log"
    log.touch()
    for _ in range(KILLS):
        size = log.stat().st_size
        with _start(rows, log) as writer:
            try:
                while log.stat().st_size == size:
                    assert writer.poll() is None
                    time.sleep(0.001)
                time.sleep(chance.uniform(0, 0.02))
            finally:
                writer.send_signal(signal.SIGKILL)
        assert writer.returncode == -signal.SIGKILL
        appended = log.read_text().split("\n")[:-1]
        assert len(set(appended)) == len(appended), "nothing is done twice"
        done = done_keys(rows)
        assert all(tuple(map(int, key.split())) in done for key in appended)
        # The kill may come between a row's write and its line in the log: one row for each kill.
        assert len(done) - len(appended) <= KILLS
    with _start(rows, log) as writer:
        assert writer.wait() == 0
    expected = [(index, trial) for index in range(INPUTS) for trial in range(TRIALS)]
    assert [one.key for one in read_rows(rows)] == expected
    (part,) = rows.glob("part-*.jsonl")
    assert part.read_bytes().count(b"\n") == len(expected), "none twice, none torn"
    assert write_sorted(rows, tmp_path / "rows.jsonl") == len(expected)
    for line in (tmp_path / "rows.jsonl").read_bytes().splitlines():
        found = orjson.loads(line)
        assert len(found["request"]["prompt"]) == found["index"] * 7919 % 4_000


def test_who_reads_while_rows_are_written_sees_whole_ones_only(tmp_path: Path) -> None:
    rows, log = tmp_path / "rows", tmp_path / "log"
    seen = [0]
    with _start(rows, log) as writer:
        while writer.poll() is None:
            keys = [one.key for one in read_rows(rows)]
            assert keys == sorted(set(keys))
            assert len(keys) >= seen[-1]
            seen.append(len(keys))
    assert writer.returncode == 0
    assert len(set(seen)) > 2, "some were read meanwhile"
    assert len(done_keys(rows)) == INPUTS * TRIALS


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path, "64k") as disk:
        yield disk


def test_a_full_disk_leaves_a_part_that_can_be_read(disk: Path) -> None:
    rows, target = disk / "rows", disk / "rows.jsonl"
    target.write_text("before")
    kept: list[int] = []

    def fill(journal: Journal) -> None:
        for index in range(100):
            journal.append(row(index, id="same", request={"prompt": "x" * 3000}))
            kept.append(index)

    with Journal(rows, "0") as journal:
        full = r"part-0\.jsonl: No space left on device; all rows before same \(index \d+, trial 0\) are kept"
        with pytest.raises(DataError, match=full) as stopped:
            fill(journal)
        assert 10 < len(kept) < 25
        assert f"index {kept[-1] + 1}," in str(stopped.value)
        assert journal.path.read_bytes().endswith(b"}\n"), "what was written of the last one is cut off"
        assert [one.index for one in read_rows(rows)] == kept
        assert done_keys(rows) == {(index, 0) for index in kept}
        for name in ("rows.jsonl", "rows.parquet"):
            with pytest.raises(DataError, match=rf"{name}: No space left on device; the rows are kept"):
                write_sorted(rows, disk / name)
        assert target.read_text() == "before"
        assert sorted(path.name for path in disk.iterdir()) == ["rows", "rows.jsonl"]
        journal.append(row(1000))
    assert [one.index for one in read_rows(rows)] == [*kept, 1000], "a smaller row still fits"
