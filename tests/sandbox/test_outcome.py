"""From what supervisors say to what is answered."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from matrix.sandbox.execution import Execution
from matrix.sandbox.outcome import outcome

PLAIN = Execution(code="pass")
JUDGED = Execution(code="pass", test="assert f() == 1")
TRACEBACK = 'Traceback (most recent call last):\n  File "main.py", line 1, in <module>\n    1/0\n'


def said(code: int = 0, **fields: Any) -> dict[str, Any]:
    """Of a program that ended with this exit code, or by this signal if it is negative."""
    status = -code if code < 0 else code << 8
    return {
        "why": None, "status": status, "stdout": "", "stderr": "", "files": {}, "files_left_out": {},
        "wall_s": 0.1, "cpu_s": 0.05, "memory_mb": 10.0, **fields,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "status", "exit_code", "ended_by"),
    [
        (said(), "ok", 0, None),
        (said(3), "error", 3, None),
        (said(-signal.SIGSEGV), "killed", None, "SIGSEGV"),
        (said(-(signal.SIGRTMIN + 3)), "killed", None, "SIGRTMIN+3"),
        (said(-signal.SIGKILL, why="timeout"), "timeout", None, "SIGKILL"),
        (said(why="memory"), "memory", 0, None),
        (said(-signal.SIGKILL, why="output_limit"), "output_limit", None, "SIGKILL"),
    ],
)
def test_how_a_program_ended(answer: dict[str, Any], status: str, exit_code: int | None, ended_by: str | None) -> None:
    executed = outcome(PLAIN, [answer])
    assert (executed.status, executed.exit_code, executed.signal) == (status, exit_code, ended_by)
    assert (executed.wall_s, executed.cpu_s, executed.memory_mb) == (0.1, 0.05, 10.0)
    assert executed.passed is None


@pytest.mark.parametrize(
    ("stderr", "status", "exception"),
    [
        (TRACEBACK + "ZeroDivisionError: division by zero\n", "error", "ZeroDivisionError: division by zero"),
        (TRACEBACK + "mine.Error\n", "error", "mine.Error"),
        (TRACEBACK + "MemoryError\n", "memory", "MemoryError"),
        (
            "  File \"main.py\", line 1\n    (\n    ^\nSyntaxError: '(' was never closed\n",
            "error",
            "SyntaxError: '(' was never closed",
        ),
        ("no traceback\n", "error", None),
        # What a program prints itself is no exception of its.
        ("Traceback (most recent call last):\nand then some words\n", "error", None),
    ],
)
def test_the_exception_is_the_last_line_of_a_traceback(stderr: str, status: str, exception: str | None) -> None:
    executed = outcome(PLAIN, [said(1, stderr=stderr)])
    assert (executed.status, executed.exception) == (status, exception)


def test_a_shell_has_no_exceptions() -> None:
    shell = Execution(code="exit 1", language="bash")
    assert outcome(shell, [said(1, stderr=TRACEBACK + "ValueError: no\n")]).exception is None


@pytest.mark.parametrize("answer", [None, {"broken": "OSError: [Errno 28] No space left on device"}])
def test_who_is_ended_with_its_supervisor_is_killed(answer: dict[str, Any] | None) -> None:
    executed = outcome(PLAIN, [answer])
    assert (executed.status, executed.signal) == ("killed", "SIGKILL")
    assert ("No space left" in executed.stderr) == (answer is not None)


@pytest.mark.parametrize(
    ("program", "judge", "passed", "status"),
    [
        (said(), said(0), True, "ok"),
        # Whatever the program made of its end.
        (said(1), said(0), True, "ok"),
        (None, said(0), True, "ok"),
        (said(), said(1), False, "failed"),
        (said(), said(2), False, "error"),
        (said(-signal.SIGKILL, why="timeout"), said(2), False, "timeout"),
        (said(why="memory"), said(1), False, "memory"),
        (said(), said(0, why="timeout"), False, "timeout"),
        (said(), said(-signal.SIGKILL, why="memory"), False, "memory"),
        (said(), None, False, "killed"),
        (said(), {"broken": "x"}, False, "killed"),
        (said(), said(-signal.SIGSEGV), False, "error"),
    ],
)
def test_only_the_judge_s_own_end_is_a_verdict(
    program: dict[str, Any] | None, judge: dict[str, Any] | None, passed: bool, status: str
) -> None:
    executed = outcome(JUDGED, [program, judge])
    assert (executed.passed, executed.status) == (passed, status)


def test_a_verdict_says_why() -> None:
    executed = outcome(JUDGED, [said(), said(1, stderr="".join(f"line {number}\n" for number in range(100)))])
    assert executed.failure is not None
    assert executed.failure.splitlines()[-1] == "line 99"
    assert len(executed.failure.splitlines()) == 20
    late = outcome(JUDGED, [said(-signal.SIGKILL, why="timeout"), said(2, stderr="the program: it is gone")])
    assert late.failure == "the program was ended first (timeout)"
