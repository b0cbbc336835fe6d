"""No tracker: the run dir holds everything."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matrix.data.rows import Row
from matrix.spec.tracker import NoTracker
from matrix.tracking.tracker import JobInfo


class SilentTracker:
    """A tracker that does nothing."""

    def __init__(self, spec: NoTracker) -> None:
        """Take what the classes of all trackers take."""

    def start(self, job: JobInfo) -> None:
        """Nothing to open."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Nothing to record: `metrics.jsonl` has it."""

    def sample(self, row: Row) -> None:
        """Nothing to keep: the rows have it."""

    def finish(self, summary: Mapping[str, Any], exit_code: int, rows_file: Path | None) -> None:
        """Nothing to close."""

    def notice(self) -> str | None:
        """Nothing to tell."""
        return None
