"""A process becomes a program: what it holds goes, what it is held to comes, and then it runs."""

from __future__ import annotations

import atexit
import builtins
import fcntl
import io
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from types import ModuleType, TracebackType
from typing import Any, NoReturn

from . import candidate, judge, kernel

Json = dict[str, Any]

NOT_STARTED = 70
"""Exit code of a process that didn't get as far as its program."""


def become(asked: Json, settings: Json, given: list[socket.socket], standard: list[int]) -> NoReturn:
    """Be the program to its end; never returns.

    Args:
        asked: What is run.
        settings: What all programs have in common.
        given: Sockets for it.
        standard: Descriptors of its stdin, stdout and stderr.
    """
    code = NOT_STARTED
    try:
        os.setsid()
        if asked["kind"] != "command":
            signal.signal(signal.SIGINT, signal.default_int_handler)
        numbers = [*standard, *(one.fileno() for one in given)]
        # First above all that they go to.
        held = [fcntl.fcntl(number, fcntl.F_DUPFD, 10) for number in numbers]
        for place, number in enumerate(held):
            os.dup2(number, place)
        os.closerange(len(held), 1 << 16)
        channels = [socket.socket(fileno=3 + place) for place in range(len(given))]
        for one in given:
            one.detach()
        kernel.first_to_die()
        kernel.restrict({**settings["limits"], **asked["limits"]}, settings["filter"])
        code = _KINDS[asked["kind"]](asked, *channels)
    except BaseException:  # noqa: BLE001 - the end of the process
        traceback.print_exc()
    finally:
        os._exit(code)


def _python(asked: Json) -> int:
    """Run a text as `python main.py ARGS` would; gives the exit code."""
    main = ModuleType("__main__")
    main.__dict__.update(
        __file__=os.path.abspath("main.py"), __builtins__=builtins, __cached__=None, __annotations__={}
    )
    sys.modules["__main__"] = main
    sys.argv = ["main.py", *asked["args"]]
    sys.path.insert(0, "/work")
    _open_standard()
    return _ended(lambda: exec(compile(asked["main"]["main.py"], "main.py", "exec", dont_inherit=True), main.__dict__))


def _candidate(asked: Json, channel: socket.socket) -> int:
    _open_standard()
    return _ended(lambda: candidate.serve(asked["code"], channel))


def _judge(asked: Json, channel: socket.socket) -> int:
    _open_standard()
    code = judge.judge(asked["prelude"], asked["test"], asked["entry_point"], channel)
    _flush()
    return code


def _command(asked: Json) -> NoReturn:
    # What Python ignores others count on: `yes | head -1`.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    os.execve("/bin/sh", ["sh", "-c", asked["command"], "sh", *asked["args"]], dict(os.environ))


_KINDS: dict[str, Callable[..., int]] = {
    "python": _python,
    "command": _command,
    "candidate": _candidate,
    "judge": _judge,
}


def _open_standard() -> None:
    """Python's own streams, on the descriptors that are new."""
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), "utf-8")
    sys.stdout = _writer(1)
    sys.stderr = _writer(2, line_buffering=True, errors="backslashreplace")
    for name in ("stdin", "stdout", "stderr"):
        setattr(sys, f"__{name}__", getattr(sys, name))


def _writer(number: int, **options: Any) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BufferedWriter(io.FileIO(number, "w", closefd=False)), "utf-8", **options)


def _ended(work: Callable[[], None]) -> int:
    """Run it as the interpreter runs a script: what it raises, its exit handlers and its threads included."""
    code, interrupted = 0, False
    try:
        work()
    except SystemExit as end:
        code = _exit_code(end)
    except BaseException as error:  # noqa: BLE001 - what the interpreter does
        error.__traceback__ = _of_the_program(error.__traceback__)
        sys.excepthook(type(error), error, error.__traceback__)
        interrupted = isinstance(error, KeyboardInterrupt)
        code = 1
    # As Py_Finalize does.
    threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001
    atexit._run_exitfuncs()  # noqa: SLF001
    _flush()
    if interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return code


def _of_the_program(found: TracebackType | None) -> TracebackType | None:
    """Without the frames of this folder."""
    while found is not None and os.path.dirname(found.tb_frame.f_code.co_filename) == os.path.dirname(__file__):
        found = found.tb_next
    return found


def _exit_code(end: SystemExit) -> int:
    if end.code is None:
        return 0
    if isinstance(end.code, int):
        return end.code & 0xFF
    print(end.code, file=sys.stderr)
    return 1


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue
