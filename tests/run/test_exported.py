from __future__ import annotations

import subprocess
import sys

from tests.command import environment


def test_a_run_without_ray_exports_nothing_and_loads_nothing() -> None:
    script = """
import sys
from matrix.run.exported import exporter
from matrix.run.progress import Progress
from matrix.spec import Price
progress = Progress(1, Price())
exporter("name", "id", progress)({"rows_done": 1})
assert "ray" not in sys.modules
import ray
exporter("name", "id", progress)({"rows_done": 1})
assert not ray.is_initialized()
"""
    subprocess.run([sys.executable, "-c", script], env=environment(), check=True, timeout=60)
