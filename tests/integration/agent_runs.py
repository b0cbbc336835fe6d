"""Runs of a team on a real Ray cluster: a file of roles, a data set, and what must have come of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matrix.data.parts import part_files
from tests.command import against, command, environment, rows, summary
from tests.fake_engine import FakeEngine, echo

HEAD = """
import asyncio, os, signal, time
from pathlib import Path
from matrix.agents import Role, Turn

FOLDER = Path(__file__).parent.parent


def asked(state, tools, said):
    return tools.llm([{"role": "user", "content": f"{state.index} {said}"}])


"""
ASKS = """
async def first(state, tools): return await asked(state, tools, "a")
async def second(state, tools): return await asked(state, tools, "b")
async def third(state, tools): return await asked(state, tools, "c")
"""
ORDER = ("agents.order=[first,second,third]", "agents.repeat=false")


class TeamRun:
    """A run, in the folder `here` of a folder.

    Args:
        folder: Gets the team's file and the rows.
        url: The server.
        roles: Code of the roles; `FOLDER` is the folder in it.
        count: Rows, of which `task.n` is the number.
        settings: More overrides.
    """

    def __init__(self, folder: Path, url: str, roles: str, count: int, *settings: str) -> None:
        self.folder, self.dir, self.count = folder, folder / "here", count
        file, self.data = folder / "team.py", folder / "rows.jsonl"
        file.write_text(HEAD + textwrap.dedent(roles))
        self.data.write_text("".join(f'{{"n": {number}}}\n' for number in range(count)))
        team = (
            "agents=custom",
            f"agents.file={file}",
            "dataset=jsonl",
            f"dataset.path={self.data}",
            f"run.dir={self.dir}",
        )
        self.arguments = (*against(url), *team, *settings)
        self.said = ""

    @contextmanager
    def started(self, *more: str) -> Iterator[subprocess.Popen[bytes]]:
        """The command; at the end of the block it is ended if it isn't over, and `said` is what it said."""
        log = self.folder / "stderr"
        with log.open("wb") as stderr:
            arguments = command(*self.arguments, *more)
            process = subprocess.Popen(
                arguments, cwd=self.folder, env=environment(), stdout=subprocess.DEVNULL, stderr=stderr
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            self.said = log.read_text()

    def to_end(self, *more: str, timeout_s: float = 360) -> int:
        """Run the command to its end; returns the exit code."""
        with self.started(*more) as process:
            return process.wait(timeout_s)

    def pid_of(self, number: int) -> int:
        """Process id of a peer."""
        return int((self.dir / "rows" / f".part-driver-{number}.lock").read_text().split()[1])

    def wait_for_rows(self, process: subprocess.Popen[bytes], *peers: int, each: int = 1) -> None:
        """Wait until these peers have finished so many rows."""

        def there(number: int) -> bool:
            part = self.dir / "rows" / f"part-driver-{number}.jsonl"
            return part.is_file() and part.read_bytes().count(b"\n") >= each

        wait_for(lambda: all(map(there, peers)), process)

    def share(self, number: int) -> int:
        """Rows that a peer finished."""
        part = self.dir / "rows" / f"part-driver-{number}.jsonl"
        return part.read_bytes().count(b"\n") if part.is_file() else 0

    def check(self, errors: dict[int, str] | None = None) -> list[dict[str, Any]]:
        """Every row is there once; `errors` are the types of those that failed."""
        found = rows(self.dir)
        assert [row["index"] for row in found] == list(range(self.count))
        lines = [json.loads(line)["index"] for part in part_files(self.dir / "rows") for line in part.open("rb")]
        assert sorted(lines) == list(range(self.count)), "the journal has none twice either"
        failed = {row["index"]: row["error"]["type"] for row in found if row["error"]}
        assert failed == (errors or {})
        assert summary(self.dir)["rows"]["error"] == len(failed)
        assert not (self.dir / "steps").exists()
        return found


def check_answers(found: list[dict[str, Any]], words: str = "abc") -> None:
    """Each row holds the answers to its own questions, in order."""
    for row in found:
        if row["error"] is None:
            assert [entry["text"] for entry in row["history"]] == [f"{row['index']} {word}" for word in words]


def asked_twice(engine: FakeEngine) -> list[str]:
    """What was asked for more than once."""
    return [what for what, count in Counter(map(echo, engine.requests)).items() if count > 1]


def wait_for(condition: Callable[[], object], process: subprocess.Popen[bytes] | None = None) -> None:
    """Wait until something holds."""
    until = time.monotonic() + 240
    while not condition():
        assert process is None or process.poll() is None, "the command has ended"
        assert time.monotonic() < until, "this took too long"
        time.sleep(0.02)


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal."""
    os.kill(pid, number)
