"""A sandbox of two workers as a server, for tests that ask one."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.serving.server_process import KEY, command, environment


@contextmanager
def sandbox(key: str | None = KEY, grpc_port: int | None = None, **engine: Any) -> Iterator[str]:
    """Its base URL."""
    spec = {"engine": {"kind": "sandbox", "workers": 2, **engine}, "model": {"name": "sandbox"}}
    more = [] if grpc_port is None else ["--grpc-port", str(grpc_port)]
    process = subprocess.Popen(
        command(*more), env=environment(json.dumps(spec), key), stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), f"no URL: exit code {process.wait(10)}"
        yield url
    finally:
        process.terminate()
        process.wait(20)
