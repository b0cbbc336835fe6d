"""Apps without a model as processes of their own: a sandbox, containers of this machine's programs."""

from __future__ import annotations

import re
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.serving.server_process import command, environment

BOX: dict[str, Any] = {"kind": "container", "images": {"host": "host"}, "containers": 4}
CODE: dict[str, Any] = {"kind": "sandbox", "workers": 1}


@contextmanager
def served(engine: dict[str, Any]) -> Iterator[str]:
    """Serve such an app; gives its URL. It is ended so that it can leave nothing behind."""
    spec = {"engine": engine, "model": {"name": engine["kind"]}}
    process = subprocess.Popen(command(), env=environment(spec, key=None), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), f"no URL: exit code {process.wait(10)}"
        yield url
    finally:
        process.terminate()
        process.wait(30)


def leased(url: str) -> int:
    """Containers of an app that somebody has."""
    with urllib.request.urlopen(f"{url.removesuffix('/v1')}/metrics") as reply:
        found = re.search(r"^matrix_requests_running (\d+)", reply.read().decode(), re.MULTILINE)
    assert found is not None
    return int(found[1])
