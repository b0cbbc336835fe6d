"""Nothing of a guarded command outlives its owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.command import environment

# A child that ignores SIGTERM, in a session of its own, with a child of its own.
STUBBORN = "trap '' TERM; setsid sleep {n} & setsid nohup sh -c \"trap '' TERM; sleep {n}; :\" & echo up; sleep {n}; :"


def started(number: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "matrix.apps.guard", "sh", "-c", STUBBORN.format(n=number)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(), start_new_session=True,
    )  # fmt: skip
    assert process.stdout
    assert process.stdout.readline() == "up\n"
    while len(sleepers(number)) < 3:
        time.sleep(0.01)
    return process


def sleepers(number: int) -> list[int]:
    """Processes of this test: those that sleep its own number of seconds."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if words[:2] == [b"sleep", str(number).encode()]:
                found.append(int(entry.name))
    return found


@pytest.mark.parametrize(
    "how", ["the owner closes its end", "SIGTERM", "the owner is killed", "the owner kills its child and goes"]
)
def test_nothing_is_left(how: str) -> None:
    number = 100 * os.getpid() + len(how)
    process = started(number)
    if how == "the owner closes its end":
        assert process.stdin
        process.stdin.close()
    elif how == "SIGTERM":
        process.terminate()
    elif how == "the owner kills its child and goes":
        process.kill()
        assert process.stdin
        process.stdin.close()
        deadline = time.monotonic() + 15
        while sleepers(number):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    else:
        # The pipe's other end goes when its last holder goes; here that is this process.
        assert process.stdin
        os.close(process.stdin.fileno())
        process.stdin = None
    process.wait(timeout=15)
    assert sleepers(number) == []


def test_the_exit_code_is_the_commands_and_its_orphans_go() -> None:
    number = 100 * os.getpid()
    script = f"setsid nohup sleep {number} & exit 7"
    done = subprocess.run(
        [sys.executable, "-m", "matrix.apps.guard", "sh", "-c", script],
        stdin=subprocess.PIPE, env=environment(), check=False, timeout=15,
    )  # fmt: skip
    # An owner that gives no input has closed its end: it's open which of the two ends the command.
    assert done.returncode in (7, 128 + signal.SIGTERM)
    assert sleepers(number) == []


def test_a_command_that_ends_by_itself_ends_the_guard() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "matrix.apps.guard", "sh", "-c", "exit 7"], stdin=subprocess.PIPE, env=environment()
    )
    begun = time.monotonic()
    assert process.wait(timeout=15) == 7
    assert time.monotonic() - begun < 10
    assert process.stdin
    process.stdin.close()
