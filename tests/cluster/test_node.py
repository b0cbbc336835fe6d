"""A node's heartbeat and signals, and Ray's processes there, with a stand-in for Ray."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from matrix.cluster import node as nodes
from matrix.cluster.node import Heartbeat, RayNode, Signals, own_ip, ray_environment, say, start_child, unknown
from matrix.cluster.states import Node
from matrix.errors import ClusterError
from tests.cluster.clusters import node

UP = 'print(\'{"node_id": "n", "address": "a", "metrics": "m", "dashboard": ""}\', flush=True)'


@pytest.fixture
def signals() -> Iterator[None]:
    """Handlers as they were."""
    before = {number: signal.getsignal(number) for number in nodes._SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def read(path: Path) -> Node:
    found = Node.read(path)
    assert found is not None
    return found


def test_a_heart_beats_until_its_last_word(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(nodes, "_BEAT_S", 0.02)
    path = tmp_path / "head.json"
    beat = Heartbeat(path, node("1", "starting"))
    first = read(path).heartbeat
    wait_for(lambda: read(path).heartbeat > first, "it beats")
    beat.set(phase="up", detail="x")
    assert (read(path).phase, read(path).detail, beat.node.phase) == ("up", "x", "up")
    beat.close(phase="ended")
    last = read(path)
    time.sleep(0.1)
    assert (read(path), last.phase) == (last, "ended")


def test_a_file_that_cannot_be_written_ends_no_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(nodes, "_BEAT_S", 0.02)
    place = tmp_path / "nodes"
    beat = Heartbeat(place / "1.json", node("1"))
    beat.set(phase="draining")
    place.mkdir()
    wait_for((place / "1.json").exists, "it beats again")
    beat.close(phase="ended")
    assert read(place / "1.json").phase == "ended"


def test_a_job_that_runs_elsewhere_by_now_has_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(nodes, "_BEAT_S", 0.02)
    path = tmp_path / "1.json"
    beat = Heartbeat(path, node("1"))
    other = node("1", host="h2", started=time.time() + 1)
    other.write(path)
    wait_for(lambda: beat.is_superseded, "it is seen")
    beat.close(phase="ended")
    assert read(path) == other


def test_the_last_signal_counts(signals: None) -> None:
    noted = Signals()
    noted.wait(0.01)
    assert noted.number is None
    for number in (signal.SIGUSR2, signal.SIGTERM):
        os.kill(os.getpid(), number)
        noted.wait(0.01)
        assert noted.number == number


def test_a_child_is_not_ended_by_what_announces_the_end_of_the_jobs_time() -> None:
    code = "import os, signal; [os.kill(os.getpid(), n) for n in (10, 12)]; print('lives')"
    child = start_child([sys.executable, "-c", code], os.environ, stdout=subprocess.PIPE)
    assert child.communicate(timeout=20)[0] == b"lives\n"
    assert child.returncode == 0


@pytest.fixture
def raylet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], RayNode]:
    """Starts a node whose Ray is a program of Python."""
    real = nodes.start_child

    def start(code: str, timeout_s: float = 20) -> RayNode:
        def stand_in(_command: object, environment: dict[str, str], **options: int) -> subprocess.Popen[bytes]:
            return real([sys.executable, "-c", code], environment, **options)

        monkeypatch.setattr(nodes, "start_child", stand_in)
        node = RayNode(tmp_path / "token", timeout_s)
        node.start({})
        return node

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return start


def test_ray_on_a_node_and_its_end(raylet: Callable[[str], RayNode]) -> None:
    ray = raylet(f"import os, sys; {UP}; sys.stderr.write(os.environ['TMPDIR']); sys.stdin.read()")
    assert ray.where["node_id"] == "n"
    assert ray.is_alive
    assert ray.environment["TMPDIR"] == str(ray.temp_dir / "tmp")
    child = subprocess.Popen(["sleep", "60"], env=ray.environment, start_new_session=True)
    ray.end()
    assert not ray.is_alive
    assert not ray.temp_dir.exists()
    # Whatever was born on the node ends with it.
    assert child.wait(timeout=20) < 0


def test_ray_that_ends_by_itself(raylet: Callable[[str], RayNode]) -> None:
    ray = raylet(UP)
    try:
        wait_for(lambda: not ray.is_alive, "it ends")
        ray.drain(10, lambda: False)
    finally:
        ray.end()


@pytest.mark.parametrize(
    ("code", "timeout_s", "message"),
    [
        ("""print('{"error": "ValueError: too little memory"}')""", 20, "start on .*: ValueError: too little memory"),
        ("import sys; sys.exit(3)", 20, "Ray doesn't start on .*: exit code 3"),
        ("import time; time.sleep(60)", 0.5, r"Ray is not up on .* after 0 s \(start_timeout_s\)"),
    ],
)
def test_ray_that_does_not_come_up_leaves_nothing(
    raylet: Callable[..., RayNode], tmp_path: Path, code: str, timeout_s: float, message: str
) -> None:
    with pytest.raises(ClusterError, match=message):
        raylet(code, timeout_s)
    assert list(tmp_path.glob("matrix-ray-*")) == []


def test_a_drain_is_asked_for_and_ends_early_when_it_is_done(raylet: Callable[[str], RayNode], tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    ray = raylet(
        f"import sys; {UP}; sys.stdin.readline(); line = sys.stdin.readline(); open({str(asked)!r}, 'w').write(line); sys.stdin.read()"
    )
    try:
        began = time.monotonic()
        ray.drain(30, asked.exists)
        assert time.monotonic() - began < 20
        wait_for(asked.read_text, "it is asked")
        assert asked.read_text() == "drain 30\n"
    finally:
        ray.end()


def test_where_the_token_is(tmp_path: Path) -> None:
    found = ray_environment(tmp_path / "token")
    assert (found["RAY_AUTH_MODE"], found["RAY_AUTH_TOKEN_PATH"]) == ("token", str(tmp_path / "token"))
    # Its content is nowhere in an environment.
    assert "RAY_AUTH_TOKEN" not in found


def test_the_address_that_others_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes.socket, "gethostbyname", lambda _: "10.1.2.3")
    assert own_ip(None) == "10.1.2.3"
    assert own_ip("127.0.0.1") == "127.0.0.1"


def test_only_what_may_come_back_is_asked_again() -> None:
    said: list[str] = []
    for error in (ClusterError("a"), OSError("b")):
        with unknown(said.append, "It"):
            raise error
    assert said == ["It: a", "It: b"]
    with pytest.raises(ValueError, match="c"), unknown(said.append, "It"):
        raise ValueError("c")


def test_a_log_on_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        say("lost")
        monkeypatch.undo()
        # Closing it would try once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())


def test_a_start_that_nobody_wants_any_more_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = nodes.start_child
    sleeps = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(nodes, "start_child", lambda _, environment, **options: real(sleeps, environment, **options))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(ClusterError, match="given up: it got SIGTERM"):
        RayNode(tmp_path / "token", 60).start({}, lambda: "it got SIGTERM")
    assert not list(tmp_path.glob("matrix-ray-*"))
