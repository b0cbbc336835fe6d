"""A server of ours as a process of this machine, without a cluster: a gateway that one run has for itself."""

from __future__ import annotations

import secrets
import time
import urllib.request
from pathlib import Path

from matrix.apps import own
from matrix.apps.launch import HOST, PORT
from matrix.apps.process import GuardedProcess, free_port
from matrix.errors import AppError
from matrix.spec import EngineSpec, ModelSpec

_LOOPBACK = "127.0.0.1"
_START_S = 60.0


class LocalServer:
    """The server; it ends with this process, or with `end`.

    Args:
        engine: What it is a gateway to.
        model: The model.
        log_dir: Folder for its log.

    Attributes:
        url: Its base URL.
        api_key: What it asks for.

    Raises:
        AppError: It didn't start, with its last lines.
    """

    def __init__(self, engine: EngineSpec, model: ModelSpec, log_dir: Path) -> None:
        self.api_key = secrets.token_urlsafe(32)
        port = str(free_port(_LOOPBACK))
        self.url = f"http://{_LOOPBACK}:{port}/v1"
        launch = own.launch(engine, model, self.api_key)
        log = log_dir / f"gateway-{engine.kind}.log"
        fill_in = {HOST: _LOOPBACK, PORT: port}
        self._process = GuardedProcess(launch.title, launch.commands[0], launch.environment, log, fill_in)
        deadline = time.monotonic() + _START_S
        while not self.is_up():
            if self._process.exit_code is not None or time.monotonic() > deadline:
                failure = self._process.failure()
                self._process.end()
                raise AppError(failure)
            time.sleep(0.05)

    def is_up(self) -> bool:
        """Whether it answers."""
        try:
            with urllib.request.urlopen(self.url.removesuffix("/v1") + "/health", timeout=5) as answer:  # noqa: S310
                return bool(answer.status == 200)
        except OSError:
            return False

    def end(self) -> None:
        """End it; returns when it is gone."""
        self._process.end()
