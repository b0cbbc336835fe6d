"""`python -m matrix.serving` as a process, for tests that talk to it over HTTP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.checkout import ROOT

KEY = "a-key"


@dataclass(frozen=True)
class Server:
    """A server that takes requests."""

    url: str
    process: subprocess.Popen[str]


def environment(serving: Any, key: str | None = KEY) -> dict[str, str]:
    """What the process reads; a string is handed over as it is, None not at all."""
    env = {name: value for name, value in os.environ.items() if name not in {"MATRIX_SERVING", "MATRIX_API_KEY"}}
    env["PYTHONPATH"] = str(ROOT)
    if serving is not None:
        env["MATRIX_SERVING"] = serving if isinstance(serving, str) else json.dumps(serving)
    if key is not None:
        env["MATRIX_API_KEY"] = key
    return env


def command(*arguments: str) -> list[str]:
    """The command line of the server, on a free port."""
    return [sys.executable, "-m", "matrix.serving", "--port", "0", *arguments]


@contextmanager
def server(
    spec: dict[str, Any], *arguments: str, key: str | None = KEY, ended_by: int = signal.SIGTERM
) -> Iterator[Server]:
    """Serve it until the end; SIGTERM lets a server that started processes end them."""
    process = subprocess.Popen(command(*arguments), env=environment(spec, key), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), f"no URL: exit code {process.wait(10)}"
        yield Server(url, process)
    finally:
        process.send_signal(ended_by)
        process.wait(30)


@contextmanager
def serving(model: dict[str, Any] | None = None, **engine: Any) -> Iterator[Server]:
    """Serve a simulated model called `sim`, without latency unless `engine` says otherwise."""
    spec = {
        "engine": {"kind": "simulated", "first_token_s": 0, "token_s": 0, "output_tokens": 8, **engine},
        "model": {"name": "sim", **(model or {})},
    }
    with server(spec, ended_by=signal.SIGKILL) as started:
        yield started
