"""A sandbox of two workers as a server, for tests that ask one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.serving.server_process import KEY, server


@contextmanager
def sandbox(key: str | None = KEY, grpc_port: int | None = None, **engine: Any) -> Iterator[str]:
    """Its base URL."""
    spec = {"engine": {"kind": "sandbox", "workers": 2, **engine}, "model": {"name": "sandbox"}}
    with server(spec, *([] if grpc_port is None else ["--grpc-port", str(grpc_port)]), key=key) as started:
        yield started.url
