"""fair-matrix 0.2.6 at the same requests, in its own environment: `data_plane.py` runs this with that Python.

It is the release's own `query_llm.batch_requests`, with the arguments that it has by default where they matter here.
"""

from __future__ import annotations

import argparse
from typing import Any

from measure import Stopwatch

from matrix.client.query_llm import batch_requests


def main() -> None:
    """Send COUNT requests, IN_FLIGHT at a time, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("count", type=int)
    parser.add_argument("--in-flight", type=int, default=512)
    options = parser.parse_args()
    content = "What is 17 + 25? Answer with the number."
    requests: list[Any] = [{"messages": [{"role": "user", "content": content}]} for _ in range(options.count)]
    watch = Stopwatch()
    rows = batch_requests(
        options.url, "mock", requests, batch_size=options.in_flight, temperature=0.0, max_tokens=16, seed=0
    )
    failed = [row["response"]["error"] for row in rows if "error" in row["response"]]
    if failed:
        raise SystemExit(f"{len(failed)} of {len(rows)} failed: {failed[0]}")
    watch.report(
        [row["response"]["response_timestamp"] - row["request"]["metadata"]["request_timestamp"] for row in rows]
    )


if __name__ == "__main__":
    main()
