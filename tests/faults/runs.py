"""`python run.py` over rows of which every answer is known, and the comparison of what it left with what it should."""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matrix.data.parts import done_keys, part_files
from tests.command import against, command, environment, rows, summary
from tests.faults.server import Key, Server, answer, question

INPUTS, TRIALS = 60, 2
KEYS = [(index, trial) for index in range(INPUTS) for trial in range(TRIALS)]


class Run:
    """A run dir below a folder, and the commands that work on it: the first starts it, the others resume.

    Args:
        folder: Where the commands run; it gets the file of rows.
        urls: The servers.
        settings: More overrides.
        run_dir: The run dir; None: one in `folder`.
    """

    def __init__(self, folder: Path, urls: Iterable[str], *settings: str, run_dir: Path | None = None) -> None:
        self.folder = folder
        self.dir = run_dir or folder / "run"
        self.data = folder / "rows.jsonl"
        self.data.write_text("".join(line(index) for index in range(INPUTS)))
        served = against(f"[{','.join(urls)}]")
        data = ("pipeline=generate", f"dataset.path={self.data}", f"trials={TRIALS}", f"run.dir={self.dir}")
        self.arguments = (*served, *data, *settings)
        self.said = ""

    @contextmanager
    def started(self) -> Iterator[subprocess.Popen[bytes]]:
        """The command, at the end of the block ended in any case; `said` is then what it said."""
        log = self.folder / "stderr"
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                command(*self.arguments),
                cwd=self.folder,
                env=environment(),
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            self.said = log.read_text()

    def to_end(self, timeout_s: float = 180) -> int:
        """Run the command to its end; returns the exit code."""
        with self.started() as process:
            return process.wait(timeout_s)

    def done(self) -> set[Key]:
        """The rows in the journal."""
        return {(index, trial) for index, trial in done_keys(self.dir / "rows")}

    def check(self, errors: Mapping[Key, str] | None = None) -> list[dict[str, Any]]:
        """Compare the rows with what they must be, each once and in order; `errors` are the types of those that failed."""
        errors = errors or {}
        found = rows(self.dir)
        assert [(row["index"], row["trial"]) for row in found] == KEYS
        for row in found:
            key = row["index"], row["trial"]
            if key in errors:
                assert (row["status"], row["response"], row["error"]["type"]) == ("error", None, errors[key])
                continue
            assert (row["status"], row["error"], row["id"]) == ("ok", None, str(row["index"]))
            assert row["request"]["messages"] == [{"role": "user", "content": question(row["index"])}]
            assert row["request"]["seed"] == row["trial"]
            assert row["response"]["text"] == [answer(*key)]
        lines = [text for part in part_files(self.dir / "rows") for text in part.read_bytes().splitlines()]
        journal = sorted((row["index"], row["trial"]) for row in map(json.loads, lines))
        assert journal == KEYS, "the journal has none twice either"
        assert not list(self.dir.glob(".*")), "nothing half written is left"
        counted = summary(self.dir)["rows"]
        assert (counted["total"], counted["error"]) == (len(KEYS), len(errors))
        return found


class Bill:
    """What was paid for: over all starts, a row may be asked for once, and once more for each that it was lost in.

    Args:
        run: The run.
        server: Who is asked; no request fails.
    """

    def __init__(self, run: Run, server: Server) -> None:
        self._run, self._server = run, server
        self._seen = 0
        self.lost: Counter[Key] = Counter()

    def ended(self) -> set[Key]:
        """Note the end of a start: what was asked for in it and isn't in the journal was lost; returns that."""
        # What was sent just before a kill is read by the server after it.
        time.sleep(0.02)
        wait_for(lambda: not self._server.in_flight)
        asked = set(self._server.asked[self._seen :])
        self._seen = len(self._server.asked)
        lost = asked - self._run.done()
        self.lost.update(lost)
        return lost

    def check(self) -> None:
        """Nothing was asked for more often than it had to be."""
        assert Counter(self._server.asked) == {key: 1 + self.lost[key] for key in KEYS}


def line(index: int) -> str:
    """A line of the file of rows."""
    return json.dumps({"messages": [{"role": "user", "content": question(index)}]}) + "\n"


def wait_for(condition: Callable[[], object], process: subprocess.Popen[bytes] | None = None) -> None:
    """Wait until something holds, or a process ends."""
    until = time.monotonic() + 240
    while not condition() and (process is None or process.poll() is None):
        assert time.monotonic() < until, "this took too long"
        time.sleep(0.002)
