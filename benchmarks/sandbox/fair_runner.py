"""fair-matrix's sandbox at the same programs: `executions.py` runs this in fair-matrix's own environment."""

from __future__ import annotations

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from matrix.app_server.code.sandbox_runner import SandboxRunner  # type: ignore[import-not-found]


def busy_s() -> float:
    """As in processes.py, which this environment can't import."""
    with open("/proc/stat") as file:  # noqa: PTH123
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, file.readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Run the programs of a JSON file, so many at a time."""
    with open(sys.argv[1]) as file:  # noqa: PTH123
        programs = json.load(file)
    # As its own app makes one for each request (code_execution_app.py).
    latencies = []

    def run(code: str) -> None:
        began = time.perf_counter()
        done = SandboxRunner(shared_paths=[], resource_limits={"time": 30}).run(code)
        latencies.append(time.perf_counter() - began)
        if not done["success"]:
            raise SystemExit(f"{done}\n{code}")

    began, busy = time.perf_counter(), busy_s()
    with ThreadPoolExecutor(int(sys.argv[2])) as pool:
        list(pool.map(run, programs))
    print(json.dumps({"latencies_s": latencies, "seconds": time.perf_counter() - began, "busy_s": busy_s() - busy}))


if __name__ == "__main__":
    main()
