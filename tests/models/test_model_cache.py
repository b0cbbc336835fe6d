from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from matrix.errors import AppError
from matrix.models.base import cache_dir, locked, write_json

HOLDER = """
import subprocess, sys
from pathlib import Path
from matrix.models.base import locked
with locked(Path(sys.argv[1]), print, 5) as lock:
    child = subprocess.Popen(["sleep", sys.argv[2]], pass_fds=(lock,))
    print("holding", flush=True)
    child.wait()
"""


def test_the_cache_moves_with_its_variable(monkeypatch):
    monkeypatch.setenv("MATRIX_CACHE", "/somewhere/else")
    assert cache_dir() == Path("/somewhere/else")
    monkeypatch.delenv("MATRIX_CACHE")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_dir() == Path("/home/someone/.cache/matrix")


def hold(entry: Path, seconds: float) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(entry), str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "holding\n"
    return holder


def test_the_second_process_waits_and_says_so(tmp_path):
    entry = tmp_path / "models" / "x"
    holder = hold(entry, 0.5)
    said: list[str] = []

    with locked(entry, said.append, 10):
        assert holder.wait(5) == 0

    assert said == [f"waiting for another process that is filling {entry}"]


def test_the_wait_ends(tmp_path):
    holder = hold(tmp_path / "x", 5)

    with pytest.raises(AppError, match="over 0 s"), locked(tmp_path / "x", print, 0.2):
        pass

    os.killpg(holder.pid, signal.SIGKILL)
    holder.wait(5)


def test_a_child_keeps_the_lock_of_a_killed_parent(tmp_path):
    holder = hold(tmp_path / "x", 2.0)
    holder.kill()
    holder.wait(5)
    started = time.monotonic()

    with locked(tmp_path / "x", print, 10):
        assert time.monotonic() - started > 0.3


def test_json_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": 2})

    assert json.loads(path.read_text()) == {"a": 2}
    assert list(tmp_path.iterdir()) == [path]
