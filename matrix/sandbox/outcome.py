"""From what supervisors say to what is answered: worked out here, where no program can reach."""

from __future__ import annotations

import os
import re
import signal
from typing import Any

from matrix.sandbox.execution import Executed, Execution, Status

_RAISED = re.compile(r"(?:[A-Za-z_][\w.]*)(?:: .*)?")
_NO_MEMORY = "MemoryError"
_PASSED, _FAILED = 0, 1
"""Exit codes of the judge."""
_FAILURE_LINES = 20
_ENDED = {"timeout", "memory", "output_limit", "killed"}

Answer = dict[str, Any]


def outcome(execution: Execution, answers: list[Answer | None]) -> Executed:
    """What came of a program.

    Args:
        execution: What was asked for.
        answers: What its supervisor, and that of its test, said; None: it was ended itself.
    """
    said = answers[0]
    executed = _executed(execution, said) if said is not None and "status" in said else _killed(said or {})
    return executed if execution.test is None else _judged(executed, answers[1])


def _killed(said: Answer) -> Executed:
    """It was ended with its supervisor, or never begun: its files were too large, say."""
    stderr = f"sandbox: {said['broken']}\n" if "broken" in said else ""
    return Executed(status=said.get("why") or "killed", signal="SIGKILL", stderr=stderr)


def _executed(execution: Execution, said: Answer) -> Executed:
    code = None if said["status"] is None else os.waitstatus_to_exitcode(said["status"])
    exception = _exception(said["stderr"]) if execution.language == "python" and code == 1 else None
    ended_by = _signal_name(-code) if code is not None and code < 0 else None
    status: Status
    if said["why"] is not None:
        status = said["why"]
    elif exception is not None and exception.split(":")[0] == _NO_MEMORY:
        status = "memory"
    elif ended_by is not None:
        status = "killed"
    else:
        status = "error" if code else "ok"
    return Executed(
        status=status,
        # What we ended has none of its own.
        exit_code=code if ended_by is None else None,
        signal=ended_by,
        exception=exception,
        **{
            name: said[name] for name in ("stdout", "stderr", "files", "files_left_out", "wall_s", "cpu_s", "memory_mb")
        },
    )


def _signal_name(number: int) -> str:
    # Those between the first and the last real-time signal have no name of their own.
    named = {one.value: one.name for one in signal.Signals}
    return named.get(number, f"SIGRTMIN+{number - signal.SIGRTMIN}")


def _exception(stderr: str) -> str | None:
    """The last line of a traceback, which isn't indented."""
    if "Traceback (most recent call last)" not in stderr and "SyntaxError" not in stderr:
        return None
    lines = [line for line in stderr.splitlines() if line and not line[0].isspace()]
    return lines[-1] if lines and _RAISED.fullmatch(lines[-1]) else None


def _judged(executed: Executed, said: Answer | None) -> Executed:
    """The same with the verdict: only the judge's own exit code makes it pass."""
    if said is None or "status" not in said:
        return executed.model_copy(
            update={"passed": False, "status": _worse(executed, "killed"), "failure": "no verdict"}
        )
    code = None if said["status"] is None else os.waitstatus_to_exitcode(said["status"])
    if code == _PASSED and said["why"] is None:
        return executed.model_copy(update={"passed": True, "status": "ok"})
    status: Status = said["why"] or ("failed" if code == _FAILED else "error")
    failure = "\n".join(said["stderr"].splitlines()[-_FAILURE_LINES:])
    if executed.status in _ENDED:
        failure = f"the program was ended first ({executed.status})"
    return executed.model_copy(update={"passed": False, "status": _worse(executed, status), "failure": failure})


def _worse(executed: Executed, status: Status) -> Status:
    """What ended the program says more than what its judge saw of that."""
    return executed.status if executed.status in _ENDED else status
