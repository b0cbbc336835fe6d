"""What a measured client prints when it is done.

Standard library only, since fair-matrix's environment imports it too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence


class Stopwatch:
    """Wall and CPU time of this process from here on."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def report(self, latencies_s: Sequence[float]) -> None:
        """Print the figures as one line of JSON, the last of stdout.

        Args:
            latencies_s: Of every request that was answered.
        """
        seconds, cpu_s = time.perf_counter() - self._wall, time.process_time() - self._cpu
        ordered = sorted(latencies_s)
        figures = {
            "requests": len(ordered),
            "seconds": seconds,
            "cpu_s": cpu_s,
            "mean_s": sum(ordered) / len(ordered),
            "p50_s": ordered[len(ordered) // 2],
            "p99_s": ordered[len(ordered) * 99 // 100],
        }
        print("\n" + json.dumps(figures), flush=True)
