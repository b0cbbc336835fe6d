"""metrics.jsonl while the disk gets full, and has room again."""

from __future__ import annotations

import json
from io import FileIO
from pathlib import Path
from typing import Any

from matrix.run.console import Console
from matrix.run.progress import Progress, reported
from matrix.spec import Price


class SmallDisk(FileIO):
    """Has room for so many bytes; the write that finds too little writes what fits, the next ones fail."""

    room = 0

    def write(self, data: Any, /) -> int:
        fits = bytes(data)[: self.room]
        self.room -= len(fits)
        if data and not fits:
            raise OSError("No space left on device")
        return super().write(fits)


async def test_a_full_disk_leaves_whole_records_only(tmp_path: Path) -> None:
    told: list[dict[str, float]] = []
    with SmallDisk(tmp_path / "metrics.jsonl", "ab") as metrics:
        for room in (10_000, 100, 0, 10_000):
            metrics.room = room
            async with reported(Progress(5, Price()), Console(), metrics, told.append, every_s=60):
                pass
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["rows_total"] for record in records] == [5, 5]
    assert len(told) == 4, "the tracker is told all the same"
