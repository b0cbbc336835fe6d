"""A server whose answer depends on the request alone, and that remembers what it was asked for.

In a thread of the test (`Server.in_thread()`), or as a process that can be killed (`ServerProcess`).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

from tests.command import ROOT, environment
from tests.fake_engine import Body, FakeEngine, Fault

Key = tuple[int, int]
"""Index and trial of a row."""


def question(index: int) -> str:
    """What is asked for a row; lengths differ, so that lines of the journal do."""
    return f"question {index} " + "?" * (index * 37 % 400)


def key_of(body: Body) -> Key:
    """The row that a request is for. The seed of a run is 0, so that a request's is its trial."""
    return int(body["messages"][-1]["content"].split()[1]), body["seed"]


def answer(index: int, trial: int) -> str:
    """The answer to a row: no two are alike, and nobody but this function knows them."""
    return sha256(f"{question(index)} {trial}".encode()).hexdigest()


class Server(FakeEngine):
    """The server.

    Args:
        fault: From the row of a request to the way in which it fails; None is none.
        latency_s: Seconds before each answer.
        port: 0 for a free one.
        ledger: File that keeps `answered` beyond a kill of the process.

    Attributes:
        asked: The row of each request in the order in which they came, and when that was (`time.time`).
        answered: The rows whose answers were on their way to the client.
    """

    def __init__(
        self,
        fault: Callable[[Key], Fault | None] = lambda _: None,
        *,
        latency_s: float = 0.0,
        port: int = 0,
        ledger: Path | None = None,
    ) -> None:
        super().__init__(self._answer, latency_s=latency_s, fail=self._come, port=port)
        self.fault = fault
        self.asked: list[Key] = []
        self.asked_at: list[float] = []
        self.answered: list[Key] = []
        self._ledger = None if ledger is None else os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def _come(self, body: Body) -> Fault | None:
        self.asked_at.append(time.time())
        self.asked.append(key_of(body))
        return self.fault(key_of(body))

    def _answer(self, body: Body) -> str:
        index, trial = key_of(body)
        self.answered.append((index, trial))
        if self._ledger is not None:
            os.write(self._ledger, f"{index} {trial}\n".encode())
        return answer(index, trial)


class ServerProcess:
    """A server in a process of its own, which keeps its port when it is killed and started again.

    Args:
        ledger: File for what it is asked for.
    """

    def __init__(self, ledger: Path) -> None:
        self._ledger = ledger
        self._port = 0
        self.url = ""

    def start(self) -> None:
        """Start it; it listens when this returns."""
        given = ("--ledger", str(self._ledger), "--port", str(self._port), "--latency", "0.05")
        code = [sys.executable, "-m", "tests.faults.server", *given]
        self._process = subprocess.Popen(code, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        self._port = int(self.url.removesuffix("/v1").rpartition(":")[2])

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.communicate()

    def answered(self) -> list[Key]:
        """The rows whose answers were on their way, over all its lives."""
        lines = self._ledger.read_text().splitlines() if self._ledger.exists() else []
        return [(int(index), int(trial)) for index, trial in map(str.split, lines)]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


async def _serve(**options: Any) -> None:
    async with Server(**options) as server:
        print(server.url, flush=True)
        await asyncio.Event().wait()


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--ledger", type=Path)
    given = parser.parse_args()
    asyncio.run(_serve(port=given.port, latency_s=given.latency, ledger=given.ledger))


if __name__ == "__main__":
    main()
