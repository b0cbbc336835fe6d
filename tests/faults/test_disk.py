"""A disk that gets full: the run stops and says which file, keeps its rows, and goes on when there is room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.runs import KEYS, Bill, Run
from tests.faults.server import Server
from tests.small_disk import resize, small_disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path, "64k") as disk:
        yield disk


@pytest.mark.parametrize(
    ("size", "file"),
    [("64k", "rows/part-driver.jsonl"), ("200k", "rows.jsonl")],
    ids=["while rows come", "while they are put in order"],
)
def test_a_full_disk(tmp_path: Path, disk: Path, size: str, file: str) -> None:
    resize(disk, size)
    with Server.in_thread() as server:
        run = Run(tmp_path, [server.url], "workload.concurrency=8", run_dir=disk / "run")
        bill = Bill(run, server)
        assert run.to_end() == 1
        assert f"{run.dir / file}: No space left on device" in run.said
        assert "kept" in run.said
        assert "Traceback" not in run.said
        assert not (run.dir / "rows.jsonl").exists()
        part = run.dir / "rows" / "part-driver.jsonl"
        assert part.read_bytes().endswith(b"}\n"), "what was written of the last row is cut off"
        lost = bill.ended()
        kept = run.done()
        assert len(kept) > 10
        assert kept == set(KEYS) if file == "rows.jsonl" else len(lost) >= 1
        asked = len(server.asked)
        assert run.to_end() == 1, "without more room it doesn't go on"
        assert "No space left on device" in run.said
        assert len(server.asked) == asked
        resize(disk, "16m")
        assert run.to_end() == 0, run.said
        bill.ended()
        run.check()
        bill.check()


def test_a_disk_that_was_full_from_the_start(tmp_path: Path, disk: Path) -> None:
    filler = disk / "filler"
    filler.write_bytes(bytes(64 * 1024))
    with Server.in_thread() as server:
        run = Run(tmp_path, [server.url], run_dir=disk / "run")
        assert run.to_end() == 1
        assert f"{run.dir / 'spec.yaml'}: No space left on device" in run.said
        assert "Traceback" not in run.said
        resize(disk, "16m")
        assert run.to_end() == 0, run.said
        assert len(server.asked) == len(KEYS)
    run.check()
