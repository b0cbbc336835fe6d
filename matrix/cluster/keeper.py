"""The process that a kept cluster lives with: `python -m matrix.cluster.keeper FOLDER SPEC`.

It starts Ray as a run would, notes where it is, and waits for SIGTERM. If it is killed the reaper ends the cluster.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path

from matrix.cluster.kept import start_time
from matrix.cluster.ray import connect
from matrix.errors import ClusterError
from matrix.spec import LocalCluster


def main(folder: Path, spec: LocalCluster) -> int:
    """Keep a cluster until SIGTERM comes; return the exit code."""
    try:
        cluster = connect(spec)
    except ClusterError as error:
        print(error, flush=True)
        return 1
    import ray

    _write(folder / "token", os.environ["RAY_AUTH_TOKEN"])
    state = {
        "address": ray.get_runtime_context().gcs_address,
        "pid": os.getpid(),
        "started": start_time(os.getpid()),
        "spec": spec.model_dump(mode="json"),
    }
    _write(folder / "cluster.json", json.dumps(state))
    stop = threading.Event()
    # Only now: Ray has handlers of its own, and who is asked to end before leaves that to the reaper.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    while not stop.wait(3600):
        pass
    cluster.stop()
    return 0


def _write(path: Path, text: str) -> None:
    aside = path.with_suffix(".new")
    aside.unlink(missing_ok=True)
    with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123
        file.write(text)
    aside.replace(path)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), LocalCluster.model_validate_json(sys.argv[2])))
