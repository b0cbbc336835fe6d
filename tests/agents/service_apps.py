"""Apps without a model as processes of their own: a sandbox, containers of this machine's programs."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.serving.server_process import server

BOX: dict[str, Any] = {"kind": "container", "images": {"host": "host"}, "containers": 4}
CODE: dict[str, Any] = {"kind": "sandbox", "workers": 1}


@contextmanager
def served(engine: dict[str, Any]) -> Iterator[str]:
    """Serve such an app; gives its URL. It is ended so that it can leave nothing behind."""
    with server({"engine": engine, "model": {"name": engine["kind"]}}, key=None) as started:
        yield started.url


def leased(url: str) -> int:
    """Containers of an app that somebody has."""
    with urllib.request.urlopen(f"{url.removesuffix('/v1')}/metrics") as reply:
        found = re.search(r"^matrix_requests_running (\d+)", reply.read().decode(), re.MULTILINE)
    assert found is not None
    return int(found[1])
