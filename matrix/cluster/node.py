"""A node of a cluster as its job sees it: Ray's processes there, in a place of their own, and how to end them all."""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from matrix.cluster.folder import ClusterFolder
from matrix.cluster.places import make_place
from matrix.cluster.reaper import MARK
from matrix.cluster.states import Node
from matrix.errors import ClusterError

_BEAT_S = 2.0
_BLIND_S = 120.0
"""A cluster whose folder isn't there for so long is no more."""
_AGAIN_S = 60.0
_SAID = [("", 0.0)]
_LOOK_S = 0.5
_ENDS_S = 0.5
"""Ray's processes end in a moment; the reaper ends what doesn't, which has to fit into Slurm's `KillWait`."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class RayNode:
    """Ray on this node: imported at once, which takes a second or two, and started by `start`.

    Args:
        token: File with the cluster's token.
        timeout_s: Seconds until it has to be up, once it is started.

    Attributes:
        where: Once it is started: `node_id`, `address` of the control plane, `metrics` (address of the node's page),
            `dashboard` (port).
    """

    def __init__(self, token: Path, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self.where: dict[str, str] = {}
        self.temp_dir, self._owner = make_place()
        mark = secrets.token_hex(8)
        self._reaper = subprocess.Popen(
            [sys.executable, "-m", "matrix.cluster.reaper", mark, str(self.temp_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=[self._owner],
        )
        own = self.temp_dir / "tmp"
        own.mkdir()
        # What processes that are killed leave in their folder for temporary files goes with the node's.
        self.environment = {**os.environ, **ray_environment(token), MARK: mark, "TMPDIR": str(own)}
        self._ray = start_child(
            [sys.executable, "-m", "matrix.cluster.raylet"],
            {**self.environment, "RAY_raylet_start_wait_time_s": str(int(timeout_s))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def start(self, options: Mapping[str, Any], gives_up: Callable[[], str] = lambda: "") -> None:
        """Start it; returns when it is up.

        Args:
            options: Of `ray._private.parameter.RayParams`: resources, name, and `gcs_address` unless it is the head.
            gives_up: Why there is nothing to wait for any more; empty if there is.

        Raises:
            ClusterError: It doesn't come up; nothing of it is left.
        """
        try:
            # Ray lets everybody write to its folder: it is one of its own, in a place that nobody else can enter.
            self._tell(json.dumps({**options, "temp_dir": str(self.temp_dir / "r")}))
            self.where = self._wait_until_up(gives_up)
        except BaseException:
            self.end()
            raise

    @property
    def is_alive(self) -> bool:
        """Whether all of Ray's processes run."""
        return self._ray.poll() is None

    def drain(self, seconds: float, done: Callable[[], bool]) -> None:
        """Let what runs here finish, or move, for so long at most; returns sooner if `done` says so."""
        self._tell(f"drain {seconds}")
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.is_alive and not done():
            time.sleep(0.5)

    def end(self) -> None:
        """End all processes that began with it, on this node; returns when they and its folder are gone."""
        stdin: IO[bytes] | None = self._ray.stdin
        if stdin is not None:
            with suppress(BrokenPipeError):
                stdin.close()
            with suppress(subprocess.TimeoutExpired):
                self._ray.wait(_ENDS_S)
        self._reaper.communicate()
        os.close(self._owner)

    def _tell(self, line: str) -> None:
        stdin: IO[bytes] | None = self._ray.stdin
        assert stdin is not None  # noqa: S101 - it is a pipe
        # Whether it has ended is seen by who waits for it.
        with suppress(BrokenPipeError):
            stdin.write(f"{line}\n".encode())
            stdin.flush()

    def _wait_until_up(self, gives_up: Callable[[], str]) -> dict[str, str]:
        output: IO[bytes] | None = self._ray.stdout
        assert output is not None  # noqa: S101 - it is a pipe
        deadline = time.monotonic() + self._timeout_s
        while not select.select([output], [], [], min(max(deadline - time.monotonic(), 0), _LOOK_S))[0]:
            if why := gives_up():
                raise ClusterError(f"Ray's start is given up: {why}")
            if time.monotonic() > deadline:
                late = f"after {self._timeout_s:.0f} s (start_timeout_s)"
                raise ClusterError(f"Ray is not up on {socket.gethostname()} {late}")
        line = output.readline()
        if not line:
            raise ClusterError(f"Ray doesn't start on {socket.gethostname()}: exit code {self._ray.wait()}")
        found: dict[str, str] = json.loads(line)
        if "error" in found:
            raise ClusterError(f"Ray doesn't start on {socket.gethostname()}: {found['error'].strip()}")
        return found


class Heartbeat:
    """Writes the state of this node to its file, again and again, from a thread of its own.

    A job that Slurm has started again elsewhere, since it lost sight of this node, has the file from then on.

    Args:
        path: The file.
        node: The state to begin with.
    """

    def __init__(self, path: Path, node: Node) -> None:
        self._path, self._node, self.is_superseded = path, node, False
        self._lock, self._end = threading.Lock(), threading.Event()
        self._write()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    @property
    def node(self) -> Node:
        """The state, as of now."""
        return replace(self._node, heartbeat=time.time())

    def set(self, **changes: Any) -> None:
        """Change the state."""
        with self._lock:
            self._node = replace(self._node, **changes)
            self._write()

    def close(self, **changes: Any) -> None:
        """The last word."""
        self._end.set()
        self._thread.join()
        self.set(**changes)

    def _beat(self) -> None:
        while not self._end.wait(_BEAT_S):
            with self._lock:
                self._write()

    def _write(self) -> None:
        # A full disk, or a file system that is away for a moment, is no reason to give the node up.
        with suppress(OSError, ClusterError):
            there = Node.read(self._path)
            self.is_superseded = there is not None and there.started > self._node.started
            if not self.is_superseded:
                self.node.beat(self._path)


class Sight:
    """Whether a cluster is there still, as far as its folder can be seen."""

    def __init__(self, folder: ClusterFolder) -> None:
        self._folder, self._seen = folder, time.monotonic()

    def is_current(self) -> bool:
        """Whether it is the one that its id stands for; one whose folder is gone for a while isn't.

        Raises:
            ClusterError: The folder isn't there just now.
        """
        try:
            found = self._folder.is_current
        except (OSError, ClusterError):
            if time.monotonic() - self._seen > _BLIND_S:
                return False
            raise
        self._seen = time.monotonic()
        return found


class Signals:
    """What the job was told by signals; the last one counts."""

    def __init__(self) -> None:
        self.number: int | None = None
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                signal.signal(number, self._note)

    def wait(self, seconds: float) -> None:
        """Sleep until the next look."""
        # An event that the handler sets could lock up: the handler runs in this thread, amid the event's own wait.
        time.sleep(seconds)

    def _note(self, number: int, _frame: object) -> None:
        self.number = number


def start_child(command: Sequence[str], environment: Mapping[str, str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a process of this job that isn't ended by the signals which announce the end of the job's time.

    Slurm sends them to every process of the job; only the job's own decides what is done.
    """
    shielded = ["sh", "-c", 'trap "" USR1 USR2; exec "$@"', "sh", *command]
    return subprocess.Popen(shielded, env=dict(environment), start_new_session=True, **options)


def ray_environment(token: Path) -> dict[str, str]:
    """What Ray's processes of a cluster, and those that join it, have in their environment."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        # A node that says nothing, since it is cut off or killed, is given up after about 12 s (3 questions), not 50.
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "3000",
        "RAY_health_check_failure_threshold": "3",
        "RAY_gcs_rpc_server_reconnect_timeout_s": "20",
    }


def own_ip(peer: str | None) -> str:
    """The address of this node at which others reach it: the one that faces a peer, or that its name stands for."""
    if peer is None:
        with suppress(OSError):
            named = socket.gethostbyname(socket.gethostname())
            if not named.startswith("127."):
                return named
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        # Nothing is sent: it only asks which way a packet would take.
        probe.connect((peer or "192.0.2.1", 9))
        return str(probe.getsockname()[0])
    return "127.0.0.1"


@contextmanager
def unknown(say: Callable[[str], None], what: str) -> Iterator[None]:
    """What can't be found out now is asked again later: Slurm or the file system may be away for a moment."""
    try:
        yield
    except (OSError, ClusterError) as error:
        say(f"{what}: {error}")


def say(text: str) -> None:
    """Into the job's log, what was said just now not again; a full disk takes nothing else along."""
    now, (last, at) = time.monotonic(), _SAID[0]
    if text == last and now - at < _AGAIN_S:
        return
    _SAID[0] = (text, now)
    with suppress(OSError):
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)
