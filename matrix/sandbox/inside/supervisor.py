"""The first process of a program's namespaces: starts it, holds it to its limits, says what came of it."""

from __future__ import annotations

import base64
import contextlib
import fnmatch
import json
import os
import re
import select
import signal
import socket
import stat
import time
from typing import Any

from . import kernel, program

Json = dict[str, Any]

LOOK_S = 0.05
"""Seconds between two looks at the memory of all processes, where no cgroup limits it."""
MOST_FILES = 1000
DEEPEST = 50
_PAGE = os.sysconf("SC_PAGE_SIZE")


def supervise(asked: Json, settings: Json, given: list[socket.socket], answer: int, uid: int, gid: int) -> None:
    """Run one program and write what came of it.

    Args:
        asked: What is run: `kind` (`python`, `command`, `candidate`, `judge`) and its limits.
        settings: What all programs have in common.
        given: Sockets for it.
        answer: Descriptor of a pipe for the answer.
        uid: Who this process was before.
        gid: Its group.
    """
    kernel.settle(uid, gid, asked["disk_mb"])
    os.chdir("/work")
    for name, content in {**asked.get("files", {}), **asked.get("main", {})}.items():
        _write(name, content)
    stdin = os.memfd_create("stdin")
    _write_all(stdin, asked.get("stdin", "").encode("utf-8", "surrogateescape"))
    os.lseek(stdin, 0, os.SEEK_SET)
    outputs = [os.pipe(), os.pipe()]
    # Has something to read when a child is over: the program, or an orphan that this process has inherited.
    ended, ending = os.pipe()
    os.set_blocking(ending, False)
    signal.set_wakeup_fd(ending, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.close(answer)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        program.become(asked, settings, given, [stdin, outputs[0][1], outputs[1][1]])
    for number in (stdin, outputs[0][1], outputs[1][1]):
        os.close(number)
    for one in given:
        one.close()
    watched = _Watched(pid, ended, [reading for reading, _ in outputs], asked)
    watched.until(began + asked["timeout"])
    wall_s = time.monotonic() - began
    watched.end_all()
    files, left_out = _results(asked.get("outputs", []), asked["disk_mb"] << 20, asked.get("main", {}))
    said = {
        "why": watched.why,
        "status": watched.status,
        "stdout": watched.text(0),
        "stderr": watched.text(1),
        "files": files,
        "files_left_out": left_out,
        "wall_s": wall_s,
        "cpu_s": watched.cpu_s,
        "memory_mb": watched.memory_kb / 1024,
    }
    _write_all(answer, json.dumps(said).encode())


class _Watched:
    """A program that runs.

    Attributes:
        why: Why it was ended (`timeout`, `memory`, `output_limit`); None if it ended by itself.
        status: As `waitpid` gives it; None while it runs.
        cpu_s: Of all processes that are over.
        memory_kb: Of the largest of them.
    """

    def __init__(self, pid: int, ended: int, readings: list[int], asked: Json) -> None:
        self.pid = pid
        self._ended = ended
        self._has_children = True
        self.why: str | None = None
        self.status: int | None = None
        self.cpu_s = 0.0
        self.memory_kb = 0
        self._readings = readings
        self._texts: dict[int, bytearray] = {reading: bytearray() for reading in readings}
        self._most = asked["output"]
        self._memory = asked["memory_mb"] << 20 if asked["watch_memory"] else None

    def until(self, deadline: float) -> None:
        """Wait until it is over, or has to be."""
        poller = select.poll()
        for number in (self._ended, *self._readings):
            os.set_blocking(number, False)
            poller.register(number, select.POLLIN)
        while self.why is None:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                self.why = "timeout"
                break
            wait_s = left_s if self._memory is None else min(left_s, LOOK_S)
            for number, _ in poller.poll(wait_s * 1000 + 1):
                if number == self._ended:
                    os.read(number, 1 << 10)
                    if self._reap(os.WNOHANG):
                        return
                elif not self._read(number):
                    poller.unregister(number)
            if self._memory is not None and _resident() > self._memory and _shares() > self._memory:
                self.why = "memory"

    def end_all(self) -> None:
        """End all that is left, and take in what it wrote."""
        while True:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
            if not self._has_children:
                break
            self._reap(0)
        for reading in self._readings:
            while self.why != "output_limit" and self._read(reading):
                pass

    def _reap(self, options: int) -> bool:
        """Take note of those that are over, orphans too; whether the program itself is."""
        while True:
            try:
                pid, status, used = os.wait4(-1, options)
            except ChildProcessError:
                self._has_children = False
                pid = 0
            if not pid:
                return self.status is not None
            self.cpu_s += used.ru_utime + used.ru_stime
            self.memory_kb = max(self.memory_kb, used.ru_maxrss)
            if pid == self.pid:
                self.status = status
            if not options:
                return self.status is not None

    def text(self, place: int) -> str:
        """What it wrote."""
        return bytes(self._texts[self._readings[place]][: self._most]).decode("utf-8", "replace")

    def _read(self, reading: int) -> bool:
        """Read what there is; false at the end."""
        try:
            block = os.read(reading, 1 << 16)
        except BlockingIOError:
            return False
        text = self._texts[reading]
        text += block
        if len(text) > self._most:
            self.why = self.why or "output_limit"
            return False
        return bool(block)


def _resident() -> int:
    """Bytes of memory of all processes here but this one; what several share counts for each: quickly read."""
    return sum(int(_read(f"/proc/{name}/statm", "0 0").split()[1]) * _PAGE for name in _others())


def _shares() -> int:
    """The same with what is shared counted once; for a process that lets nobody look, all that it has."""
    total = 0
    for name in _others():
        found = re.search(r"^Pss: +([0-9]+)", _read(f"/proc/{name}/smaps_rollup", ""), re.MULTILINE)
        total += int(found[1]) << 10 if found else int(_read(f"/proc/{name}/statm", "0 0").split()[1]) * _PAGE
    return total


def _others() -> list[str]:
    return [name for name in os.listdir("/proc") if name.isdigit() and name != "1"]


def _read(path: str, gone: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return gone


def _write(name: str, content: str | dict[str, str]) -> None:
    """Write a file of the program's; the name has been checked outside."""
    folder = os.path.dirname(name)
    if folder:
        os.makedirs(folder, exist_ok=True)
    data = content.encode() if isinstance(content, str) else base64.b64decode(content["base64"])
    number = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o755)
    _write_all(number, data)
    os.close(number)


def _write_all(number: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(number, view) :]


def _results(patterns: list[str], most: int, main: Json) -> tuple[Json, dict[str, str]]:
    """Files that match; all processes are over, so that nothing changes any more. Links are never followed."""
    found: Json = {}
    left_out: dict[str, str] = {}
    if not patterns:
        return found, left_out
    for path, folders, names, folder in os.fwalk(".", follow_symlinks=False):
        if path.count("/") >= DEEPEST and folders:
            # Each level takes a descriptor and a frame.
            left_out["..."] = f"folders of more than {DEEPEST} levels"
            folders.clear()
        for name in sorted(names):
            # A name may be any bytes; an answer is text.
            relative = os.fsencode(os.path.normpath(os.path.join(path, name))).decode("utf-8", "backslashreplace")
            if relative in main or not any(fnmatch.fnmatch(relative, pattern) for pattern in patterns):
                continue
            if len(found) + len(left_out) >= MOST_FILES:
                left_out["..."] = f"more than {MOST_FILES} files"
                return found, left_out
            info = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if not stat.S_ISREG(info.st_mode):
                left_out[relative] = "no file (a link, pipe or socket)"
            elif info.st_size > most:
                left_out[relative] = "more than all files may have together"
            else:
                most -= info.st_size
                found[relative] = _content(name, folder)
    return found, left_out


def _content(name: str, folder: int) -> str | dict[str, str]:
    os.chmod(name, 0o600, dir_fd=folder)
    number = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder)
    with os.fdopen(number, "rb") as file:
        data = file.read()
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}
