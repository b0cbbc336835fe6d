"""Apps against their limits: `python benchmarks/serving.py engine|deploy|add|vllm [--repeat N] [--scale 0.1]`.

- engine: requests/s, latency and CPU of one replica of the simulated engine by each way to it (`serving_engine.py`);
- deploy: seconds until an app with vLLM is healthy, against `vllm serve` alone (`serving_deploy.py`);
- add: what clients of one app notice while another is added and removed (`serving_add.py`);
- vllm: tokens/s of `pipeline=generate` against `vllm bench serve`, both on one replica (`serving_vllm.py`).

Each has a cluster of its own, which is gone at the end. Contenders take turns, the whole round is repeated, and the
tables show medians with the lowest and the highest.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys
from pathlib import Path

CORES = 2
PARTS = {"engine": 3, "deploy": 2, "add": 3, "vllm": 3}
"""How often each is repeated: as often as makes it take some minutes."""


def main() -> None:
    """Measure one of them and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--repeat", type=int, help=f"rounds; by default {PARTS}")
    parser.add_argument("--scale", type=float, default=1.0, help="times the requests, or the seconds")
    parser.add_argument("--json", type=Path, help="file for the raw figures")
    options = parser.parse_args()
    # As Ctrl-C: whatever ends it, the cluster is stopped.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    part = importlib.import_module(f"serving_{options.part}")
    found = part.measure(options.repeat or PARTS[options.part], options.scale)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
