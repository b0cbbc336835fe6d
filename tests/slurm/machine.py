"""The Slurm that start_slurm.sh starts: nodes n1, n2 and n3, and what can be done to them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).with_name("start_slurm.sh")
NODES = ("n1", "n2", "n3")
SLURMD_PORT = 6818


@dataclass(frozen=True)
class Slurm:
    """One Slurm.

    Attributes:
        base: Its folder, which is gone when it is stopped.
    """

    base: Path

    @property
    def conf(self) -> Path:
        """What SLURM_CONF has to be."""
        return self.base / "slurm.conf"

    @contextmanager
    def running(self) -> Iterator[None]:
        """It runs while the block does."""
        done = subprocess.run([SCRIPT, "start", self.base], capture_output=True, text=True, timeout=360, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        try:
            yield
        finally:
            subprocess.run([SCRIPT, "stop", self.base], timeout=180, check=True)

    def host(self, node: str) -> int:
        """Process id, on this machine, of a node's first process."""
        return int((self.base / "hosts.d" / node / "pid").read_text())

    def on(self, node: str, *command: str) -> str:
        """What a command prints on a node."""
        enter = ["nsenter", "--all", "--target", str(self.host(node)), "--"]
        return subprocess.run([*enter, *command], capture_output=True, text=True, timeout=180, check=True).stdout

    @contextmanager
    def cut_off(self, node: str) -> Iterator[None]:
        """Nothing reaches the node, and it reaches nobody, while the block runs."""
        link = f"{(self.base / 'bridge').read_text().strip()}-{node}"
        subprocess.run(["ip", "link", "set", link, "down"], check=True)
        try:
            yield
        finally:
            subprocess.run(["ip", "link", "set", link, "up"], check=True)

    def listening(self, node: str) -> set[int]:
        """Ports on which something listens on the node, loopback included, slurmd's excluded."""
        found = set()
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{self.host(node)}/net/{table}").read_text().splitlines()[1:]:
                words = line.split()
                # 0A is LISTEN.
                if words[3] == "0A":
                    found.add(int(words[1].rpartition(":")[2], 16))
        return found - {SLURMD_PORT}

    def processes(self, node: str) -> dict[int, str]:
        """Command lines of a node's processes, by their process ids on this machine."""
        namespace = Path(f"/proc/{self.host(node)}/ns/pid").readlink()
        return {pid: line for pid, line in all_processes().items() if _namespace(pid) == namespace}


def all_processes() -> dict[int, str]:
    """Command lines of the processes of this machine and of all nodes; those that have ended are left out."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        # A process may end while it is looked at.
        with suppress(OSError):
            if line := (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip():
                found[int(entry.name)] = line
    return found


def mentions(pid: int, text: str) -> bool:
    """Whether a process names this in its command line or in the environment that it was started with."""
    with suppress(OSError):
        return any(text.encode() in Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ"))
    return False


def _namespace(pid: int) -> Path | None:
    with suppress(OSError):
        return Path(f"/proc/{pid}/ns/pid").readlink()
    return None
