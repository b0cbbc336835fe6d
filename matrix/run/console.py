"""What the user sees while a run goes: stages with elapsed time, log lines, and the same in `run.log`."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console as RichConsole
from rich.markup import escape

from matrix.errors import DataError

log = logging.getLogger("matrix")

_REMIND_S = 10.0
"""Seconds between reminders of a stage that takes long, without a terminal."""
_DETAIL_WIDTH = 100


class Console:
    """Terminal and log of one process."""

    def __init__(self) -> None:
        self.rich = RichConsole(stderr=True, highlight=False, soft_wrap=True)

    @property
    def interactive(self) -> bool:
        """Whether somebody watches."""
        return self.rich.is_terminal

    @contextmanager
    def log_to(self, file: Path) -> Iterator[None]:
        """Send the log of matrix to the terminal, and with tracebacks and more detail to a file."""
        try:
            to_file = _FileHandler(file)
        except OSError as error:
            raise DataError(f"{file}: {error.strerror}; give another run.dir or run.root") from error
        to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        to_terminal = _TerminalHandler(self.rich)
        log.setLevel(logging.DEBUG)
        log.propagate = False
        log.handlers = [to_file, to_terminal]
        try:
            yield
        finally:
            log.handlers = []
            # On a full disk it tries once more to write its last line.
            with suppress(OSError):
                to_file.close()

    @contextmanager
    def stage(self, text: str) -> Iterator[Stage]:
        """Say what is being waited for, with elapsed time, until the block ends."""
        stage = Stage(text)
        done = threading.Event()
        ticker = threading.Thread(target=self._tick, args=(stage, done), daemon=True)
        log.info("%s ...", text)
        ticker.start()
        try:
            yield stage
        finally:
            done.set()
            ticker.join()
        log.info("%s: done in %.1f s", text, stage.elapsed_s)

    def _tick(self, stage: Stage, done: threading.Event) -> None:
        if not self.interactive:
            while not done.wait(_REMIND_S):
                log.info("%s", stage)
            return
        with self.rich.status(escape(str(stage))) as status:
            while not done.wait(0.2):
                status.update(escape(str(stage)))


class Stage:
    """Something that is being waited for; `detail` is its last word on what it does."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.detail = ""
        self._started = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._started

    def __str__(self) -> str:
        lines = self.detail.splitlines()
        detail = f" ({lines[-1].strip()[:_DETAIL_WIDTH]})" if lines else ""
        return f"{self.text} ... {self.elapsed_s:.0f} s{detail}"


class _FileHandler(logging.FileHandler):
    """`run.log`; a line that can't be written (a full disk) is on the terminal all the same."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's name
        """Say nothing: logging would print a traceback for every line."""


class _TerminalHandler(logging.Handler):
    """Log lines above whatever live display is on; tracebacks stay in the file."""

    def __init__(self, rich: RichConsole) -> None:
        super().__init__(logging.INFO)
        self._rich = rich

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        self._rich.print(f"{time.strftime('%H:%M:%S')} {level}{record.getMessage()}", markup=False)
