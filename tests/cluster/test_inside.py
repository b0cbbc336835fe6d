"""The commands inside a cluster, as the head starts, stops and restarts them."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from matrix.cluster import inside
from matrix.cluster.folder import ClusterFolder
from matrix.cluster.inside import INSIDE, Commands
from matrix.cluster.states import Command
from tests.cluster.clusters import command, new
from tests.command import environment

STUBBORN = """
import signal, sys, time
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: print(signal.Signals(number).name, flush=True))
print("up", flush=True)
while True:
    time.sleep(0.1)
"""
SHORT = {"_STOP_S": 0.6, "_KILL_S": 0.6, "_BEAT_S": 0.1}


@dataclass
class Inside:
    """A head's side of commands that are Python programs of their own, told by `argv`."""

    folder: ClusterFolder
    said: list[str] = field(default_factory=list)

    def add(self, key: str, code: str, phase: str = "waiting", **more: str | int) -> None:
        # `-c` of what `argv` names, instead of matrix.
        self.folder.command_file(key, "env").write_text(json.dumps(environment(PATH=os.environ["PATH"])))
        command(self.folder, key, phase, argv=(code, "with space"), **more)

    def head(self) -> Commands:
        self.commands = Commands(self.folder, {"OF_RAY": "1"}, "job", self.said.append)
        return self.commands

    def of(self, key: str) -> Command:
        found = Command.read(self.folder.command_file(key))
        assert found is not None
        return found

    def output(self, key: str) -> str:
        path = self.folder.command_file(key, "log")
        return path.read_text() if path.exists() else ""

    def until(self, key: str, *phases: str, output: str = "") -> Command:
        deadline = time.monotonic() + 20
        while self.of(key).phase not in phases or output not in self.output(key):
            assert time.monotonic() < deadline, (self.of(key), self.output(key))
            self.commands.look()
            time.sleep(0.02)
        return self.of(key)


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Inside]:
    program = tmp_path / "program"
    # As Python is called for matrix: -P -c CODE ARGUMENTS; what is run is the first argument.
    program.write_text(f'#!/bin/sh\nshift 3\ncode="$1"\nshift\nexec {sys.executable} -c "$code" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setattr(inside.sys, "executable", str(program))
    for name, seconds in SHORT.items():
        monkeypatch.setattr(inside, name, seconds)
    found = Inside(new(tmp_path / "root"))
    yield found
    for running in found.commands._running.values():
        running.process.kill()
        running.process.wait()


def test_a_command_runs_where_and_with_what_it_was_typed(
    monkeypatch: pytest.MonkeyPatch, there: Inside, tmp_path: Path
) -> None:
    for name in ("SLURM_JOB_ID", "TMPDIR", "RAY_ADDRESS", "HOSTNAME", "MINE"):
        monkeypatch.setenv(name, "typed")
    there.add("k", "import json, os, sys; print(json.dumps([os.getcwd(), dict(os.environ), sys.argv[1:]]))",
              cwd=str(tmp_path))  # fmt: skip
    there.folder.command_file("k", "env").write_text(json.dumps(dict(os.environ)))
    there.head()
    assert there.until("k", "succeeded").exit_code == 0
    where, env, argv = json.loads(there.output("k"))
    assert where == str(tmp_path)
    assert argv == ["with space"]
    assert env["MINE"] == "typed"
    assert env["OF_RAY"] == "1"
    assert env[INSIDE] == str(there.folder.path)
    assert not {"SLURM_JOB_ID", "TMPDIR", "RAY_ADDRESS", "HOSTNAME"} & env.keys()


def test_the_command_is_matrix_itself_with_the_heads_python(tmp_path: Path) -> None:
    folder = new(tmp_path)
    folder.command_file("k", "env").write_text(json.dumps(environment()))
    command(folder, "k", argv=("--version",))
    commands = Commands(folder, {}, "job", print)
    deadline = time.monotonic() + 30
    while not commands.all_ended():
        assert time.monotonic() < deadline
        commands.look()
        time.sleep(0.05)
    assert folder.command_file("k", "log").read_text().startswith("matrix ")


@pytest.mark.parametrize(
    ("ends", "phase", "code"),
    [
        ("sys.exit(0)", "succeeded", 0),
        ("sys.exit(1)", "failed", 1),
        ("sys.exit(3)", "failed", 3),
        ("sys.exit(130)", "stopped", 130),
        ("sys.exit(143)", "stopped", 143),
        ("os.kill(os.getpid(), 15)", "stopped", 143),
        ("os.kill(os.getpid(), 9)", "failed", 137),
    ],
)
def test_how_it_ended(there: Inside, ends: str, phase: str, code: int) -> None:
    there.add("k", f"import os, sys; {ends}")
    there.head()
    found = there.until("k", phase)
    assert (found.exit_code, found.pid, found.starts) == (code, 0, 1)
    assert there.said == [f"Command k: {phase}, exit code {code}"]


def test_its_environment_is_kept_until_it_has_ended(there: Inside) -> None:
    there.add("k", "import time; print('up', flush=True); time.sleep(60)")
    there.head()
    running = there.until("k", "running", output="up")
    assert running.pid > 0
    assert there.folder.command_file("k", "env").exists()
    there.folder.command_file("k", "stop").touch()
    there.until("k", "stopped")
    assert not there.folder.command_file("k", "env").exists()


def test_one_that_is_asked_to_stop_gets_sigint(there: Inside) -> None:
    there.add("k", "import time\nprint('up', flush=True)\ntry:\n time.sleep(60)\nfinally:\n print('rows kept')")
    there.head()
    there.until("k", "running", output="up")
    there.folder.command_file("k", "stop").touch()
    assert there.until("k", "stopped").exit_code == 130
    assert "rows kept" in there.output("k")
    assert "KeyboardInterrupt" in there.output("k")


def test_a_stubborn_one_is_terminated_then_killed(there: Inside) -> None:
    there.add("k", STUBBORN)
    there.head()
    there.until("k", "running", output="up")
    there.folder.command_file("k", "stop").touch()
    began = time.monotonic()
    assert there.until("k", "failed").exit_code == 137
    assert time.monotonic() - began > SHORT["_STOP_S"] + SHORT["_KILL_S"]
    lines = there.output("k").split()
    assert lines[:3] == ["up", "SIGINT", "SIGTERM"]
    assert lines.count("SIGINT") == 1


def test_one_that_is_asked_to_stop_before_it_starts_never_does(there: Inside) -> None:
    there.add("k", "print('up')")
    there.folder.command_file("k", "stop").touch()
    there.head()
    found = there.until("k", "stopped")
    assert (found.exit_code, found.starts) == (130, 0)
    assert there.output("k") == ""


def test_the_end_of_the_jobs_time_is_no_business_of_a_command(there: Inside) -> None:
    there.add("k", "import os, signal, sys\nfor n in (10, 12): os.kill(os.getpid(), n)\nprint('lives')")
    there.head()
    there.until("k", "succeeded", output="lives")


def test_a_folder_that_only_the_login_node_has(there: Inside) -> None:
    there.add("k", "print('up')", cwd="/tmp/only/there")
    there.add("ok", "print('up')")
    there.head()
    assert there.until("k", "failed").exit_code == 1
    assert "/tmp/only/there: No such file or directory on the head's node" in there.output("k")
    there.until("ok", "succeeded")


def test_several_run_side_by_side_and_all_have_to_end(there: Inside) -> None:
    commands = there.head()
    assert not commands.all_ended()
    there.add("a", "import time; print('up', flush=True); time.sleep(60)")
    there.add("b", "pass")
    there.until("a", "running", output="up")
    there.until("b", "succeeded")
    assert not commands.all_ended()
    there.folder.command_file("a", "stop").touch()
    there.until("a", "stopped")
    assert commands.all_ended()


def test_a_head_that_comes_back_goes_on_with_its_commands(there: Inside) -> None:
    there.add("k", "import time\nprint('up', flush=True)\ntime.sleep(60)")
    there.add("done", "pass")
    first = there.head()
    there.until("k", "running", output="up")
    there.until("done", "succeeded")
    first.end(10, "requeued")
    cut = there.of("k")
    assert (cut.phase, cut.exit_code, cut.pid) == ("requeued", None, 0)
    assert there.folder.command_file("k", "env").exists()
    assert not cut.has_ended

    there.head()
    assert there.until("k", "running").starts == 2
    assert there.said[-1] == "Command k goes on"
    assert there.of("done").starts == 1


def test_one_that_ends_while_the_head_leaves_is_not_started_again(there: Inside) -> None:
    there.add("k", "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(0))\n"
                   "print('up', flush=True)\ntime.sleep(60)")  # fmt: skip
    commands = there.head()
    there.until("k", "running", output="up")
    commands.end(10, "requeued")
    assert there.of("k").phase == "succeeded"


def test_one_that_was_asked_to_stop_is_not_started_again(there: Inside) -> None:
    there.add("k", STUBBORN)
    commands = there.head()
    there.until("k", "running", output="up")
    there.folder.command_file("k", "stop").touch()
    commands.look()
    commands.end(0.5, "requeued")
    assert there.of("k").phase == "requeued"
    there.head()
    found = there.until("k", "stopped")
    assert (found.starts, found.exit_code) == (1, 130)


def test_one_of_a_head_that_was_killed_is_started_again(there: Inside) -> None:
    there.add("k", "pass", "running", starts=1, pid=1)
    there.head()
    assert there.of("k").phase == "requeued"
    assert there.until("k", "succeeded").starts == 2


@pytest.mark.parametrize("then", ["stopped", "lost"])
def test_a_head_that_ends_for_good_stops_them_and_gives_up_what_waits(there: Inside, then: str) -> None:
    there.add("k", "import time; print('up', flush=True); time.sleep(60)")
    there.add("stubborn", STUBBORN)
    commands = there.head()
    there.until("k", "running", output="up")
    there.until("stubborn", "running", output="up")
    there.add("waits", "print('up')")
    commands.end(1, then)  # type: ignore[arg-type]
    ends = [(there.of(key).phase, there.of(key).exit_code) for key in ("k", "stubborn")]
    assert ends == ([("lost", 1)] * 2 if then == "lost" else [("stopped", 128 + signal.SIGTERM), ("failed", 137)])
    assert (there.of("waits").phase, there.of("waits").exit_code) == ("lost", 1)
    assert commands.all_ended()
    assert not list(there.folder.path.glob("commands/*.env"))


def test_a_command_knows_its_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(INSIDE, raising=False)
    assert inside.inside() is None
    monkeypatch.setenv(INSIDE, str(tmp_path))
    assert inside.inside() == ClusterFolder(tmp_path)
