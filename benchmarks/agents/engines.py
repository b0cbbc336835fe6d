"""Simulated engines as processes of their own, without Ray."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Self
from urllib.request import urlopen

ROOT = Path(__file__).parent.parent.parent


class Engines:
    """Some servers of the simulated engine, which can't outlive this process.

    Args:
        engine: Fields of `conf/engine/simulated.yaml`.
        number: How many.
    """

    def __init__(self, engine: dict[str, Any], number: int = 1) -> None:
        environment = {
            **{name: value for name, value in os.environ.items() if name != "MATRIX_API_KEY"},
            "PYTHONPATH": str(ROOT),
        }
        self._processes = []
        for seed in range(number):
            serving = {"engine": {"kind": "simulated", "seed": seed, **engine}, "model": {"name": "sim"}}
            environment["MATRIX_SERVING"] = json.dumps(serving)
            # The guard's standard input is what it hangs on: it ends when this process does.
            guarded = [sys.executable, "-m", "matrix.apps.guard", sys.executable, "-m", "matrix.serving", "--port", "0"]
            self._processes.append(
                subprocess.Popen(
                    guarded, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )
        self.urls = []
        for process in self._processes:
            assert process.stdout is not None
            self.urls.append(f"{process.stdout.readline().strip().rstrip('/').removesuffix('/v1')}/v1")

    @property
    def pids(self) -> list[int]:
        """Process ids of the guards, whose children the servers are."""
        return [process.pid for process in self._processes]

    def count(self, metric: str = "matrix_requests_total") -> float:
        """Sum of a metric over all of them."""
        return sum(
            sum(map(float, re.findall(rf"^{metric}(?:\{{.*\}})? (\S+)", _get(url), re.MULTILINE))) for url in self.urls
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.communicate()


def _get(url: str) -> str:
    with urlopen(f"{url.removesuffix('/v1')}/metrics") as answer:
        return str(answer.read().decode())
