"""End what a local Ray cluster leaves behind: `python -m matrix.cluster.reaper MARK TEMP_DIR`.

Ray ends its processes with the driver that started them, but not all of them when the driver is killed, and never its
temporary folder. The reaper is started before Ray and waits for the end of its standard input, which comes when the
driver closes it or is gone, whatever the reason. Then it ends every process that carries the cluster's mark in the
environment it was born with, and removes the folder. Ray's agents write their titles over that environment; they are
told by the files of the folder that they have open.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

MARK = "MATRIX_CLUSTER_MARK"
_GRACE_S = 2.0
"""Seconds between asking the processes to end and ending them."""


def main(mark: str, temp_dir: str) -> None:
    """Wait for the owner's end, then clean up."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    while os.read(0, 4096):
        pass
    started = time.monotonic()
    number = signal.SIGTERM
    while pids := of_cluster(mark, temp_dir):
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        if time.monotonic() - started > _GRACE_S:
            number = signal.SIGKILL
        time.sleep(0.1)
    shutil.rmtree(temp_dir, ignore_errors=True)


def of_cluster(mark: str, temp_dir: str) -> list[int]:
    """Processes that were born with the mark in their environment, or are Ray's and write to the folder."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if wanted in (entry / "environ").read_bytes().split(b"\0") or _writes_to(entry, temp_dir):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def _writes_to(process: Path, temp_dir: str) -> bool:
    # Only Ray's: somebody who looks at a log isn't meant.
    if not (process / "cmdline").read_bytes().startswith(b"ray::"):
        return False
    return any(str(file.readlink()).startswith(f"{temp_dir}/") for file in (process / "fd").iterdir())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
