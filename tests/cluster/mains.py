"""What jobs of tests run."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from matrix.cluster import jobs


def stays(mark: str, ends_at: str) -> None:
    """Write the job's id to a file, and stay until the signal of this name comes, which is written as well."""
    ended: list[int] = []
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if ends_at:
        signal.signal(signal.Signals[f"SIG{ends_at}"], lambda number, _: ended.append(number))
    aside = Path(f"{mark}.half")
    aside.write_text(jobs.job_id("local"))
    aside.rename(mark)
    while not ended:
        time.sleep(0.05)
    Path(mark).write_text("ended")
