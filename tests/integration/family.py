"""What a test starts, with all that this starts in turn: who is left of it, and where it listens."""

from __future__ import annotations

import os
import re
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

_EVERY_S = 0.5


class Family:
    """Remembers every process that was seen below this one while the block runs, also after it was orphaned.

    Other processes of the machine are none of its business: somebody else may run Ray or a server there.

    Attributes:
        exposed: Addresses beyond loopback, as /proc/net/tcp has them, on which one of them listened.
    """

    def __init__(self) -> None:
        self.exposed: set[str] = set()
        self._seen: dict[tuple[int, str], str] = {}
        self._before: set[tuple[int, str]] = set()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __len__(self) -> int:
        return len(self._seen)

    def __enter__(self) -> Self:
        self._before = {(pid, born) for pid, (_, born, _) in _all().items()}
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def seen(self) -> list[tuple[int, str]]:
        """Process ids and command lines of all that were seen."""
        return [(pid, line) for (pid, _), line in self._seen.items()]

    def left(self, within_s: float) -> list[str]:
        """Command lines of those that still live after so many seconds, and temporary folders of theirs."""
        deadline = time.monotonic() + within_s
        while alive := [line for (pid, born), line in self._seen.items() if _stat(pid)[:2] == (True, born)]:
            if time.monotonic() > deadline:
                return alive
            time.sleep(0.1)
        folders = {match for line in self._seen.values() for match in re.findall(r"/tmp/matrix-ray-\w+", line)}
        return [folder for folder in folders if Path(folder).exists()]

    def _watch(self) -> None:
        while not self._done.wait(_EVERY_S):
            stats = _all()
            front = {os.getpid()}
            while front:
                front = {pid for pid, (alive, _, parent) in stats.items() if alive and parent in front}
                for pid in front:
                    # What an earlier test left running (multiprocessing's resource tracker) isn't of this block.
                    if (pid, stats[pid][1]) in self._before:
                        continue
                    self._seen.setdefault((pid, stats[pid][1]), _read(pid, "cmdline").replace("\0", " "))
            listening = _listening_beyond_loopback()
            if listening:
                sockets = {socket for pid, _ in self._seen for socket in _sockets(pid)}
                self.exposed |= {address for socket, address in listening.items() if socket in sockets}


def _all() -> dict[int, tuple[bool, str, int]]:
    return {int(entry.name): _stat(int(entry.name)) for entry in Path("/proc").glob("[0-9]*")}


def _listening_beyond_loopback() -> dict[str, str]:
    found = {}
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            words = line.split()
            # 0A is LISTEN; 0100007F is 127.0.0.1, also mapped into IPv6, and the other one is ::1.
            if words[3] == "0A" and not re.search(r"0100007F:|0{24}01000000:", words[1]):
                found[f"socket:[{words[9]}]"] = words[1]
    return found


def _sockets(pid: int) -> set[str]:
    found: set[str] = set()
    # A process that ends while it is looked at has nothing more to tell.
    with suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            found.add(str(descriptor.readlink()))
    return found


def _stat(pid: int) -> tuple[bool, str, int]:
    """Whether it lives, when it was born (in clock ticks) and who its parent is."""
    words = _read(pid, "stat").rpartition(")")[2].split()
    return (words[0] != "Z", words[19], int(words[1])) if words else (False, "", 0)


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:
        return ""
