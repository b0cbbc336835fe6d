"""What the door itself counts, in Prometheus' text format."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict

from matrix.serving.door.page import label

# Seconds: from a refusal to a long generation.
BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)


class _Histogram:
    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.sum_s = 0.0


class Figures:
    """Requests by app and status, and how long they took."""

    def __init__(self) -> None:
        self._requests: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._seconds: defaultdict[str, _Histogram] = defaultdict(_Histogram)

    def count(self, app: str, status: str, took_s: float) -> None:
        """A request has ended, with a status of HTTP or gRPC."""
        self._requests[app, status] += 1
        seconds = self._seconds[app]
        seconds.counts[bisect_left(BOUNDS, took_s)] += 1
        seconds.sum_s += took_s

    def page(self) -> str:
        """All of it."""
        lines = [
            "# HELP matrix_door_requests_total Requests that have ended; 499: the client went away.",
            "# TYPE matrix_door_requests_total counter",
        ]
        for (app, status), count in self._requests.items():
            lines.append(f"matrix_door_requests_total{{{label('app', app)},{label('status', status)}}} {count}")
        lines += [
            "# HELP matrix_door_request_seconds Seconds from a request to the end of its answer.",
            "# TYPE matrix_door_request_seconds histogram",
        ]
        for app, seconds in self._seconds.items():
            total = 0
            for bound, count in zip((*map(str, BOUNDS), "+Inf"), seconds.counts, strict=True):
                total += count
                labels = f"{label('app', app)},{label('le', bound)}"
                lines.append(f"matrix_door_request_seconds_bucket{{{labels}}} {total}")
            lines.append(f"matrix_door_request_seconds_sum{{{label('app', app)}}} {seconds.sum_s}")
            lines.append(f"matrix_door_request_seconds_count{{{label('app', app)}}} {total}")
        return "\n".join(lines) + "\n"
