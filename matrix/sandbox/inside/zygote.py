"""A warm interpreter in a sandbox, which forks for each program, and never runs one itself.

It is asked over the socket that is its stdin: a length of 4 bytes and JSON, both ways. First come the settings, then
one request after another, each answered before the next; what comes in between ends the program that runs. It ends with
the socket. What is run, and what came of it, are in files that only the supervisors read and write: whatever this
process ever held could be found in the memory of all programs after. This folder is a package of its own there
(`inside`), with nothing but the standard library: its memory is what programs begin with.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from typing import Any

from . import kernel, supervisor

Json = dict[str, Any]

JUDGE_GRACE_S = 1.0
"""Seconds that a program has when its judge is done."""
MOST_FILES = 4
"""That come with a request: for the program, and for its judge, one with what is asked and one for the answer."""


def main() -> None:
    """Serve until the socket is closed."""
    channel = socket.socket(fileno=os.dup(0))
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    settings, _ = receive(channel)
    settings["filter"] = bytes.fromhex(settings["filter"])
    for name in settings["preload"]:
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - the boundary: it says which
            sys.exit(f"engine.preload={name} can't be imported by {sys.executable}: {type(error).__name__}: {error}")
    # It led here; programs begin without it.
    del sys.path[0]
    # Not looked at, and so not written to and copied, in each fork.
    gc.collect()
    gc.freeze()
    send(channel, json.dumps({"proc": kernel.has_proc()}).encode())
    while True:
        asked, files = receive(channel)
        if asked is None:
            return
        # Empty: it came to end a program that was over already, or the one before.
        if asked:
            send(channel, json.dumps(run(asked, settings, channel, files)).encode())


def run(asked: Json, settings: Json, channel: socket.socket, files: list[int]) -> list[bool]:
    """Run the program, and beside it the test, if there is one; tells whose supervisors have answered."""
    given: list[list[socket.socket]] = [[] for _ in range(asked["programs"])]
    if len(given) > 1:
        # Each ends in a sandbox of its own; all that they share is this connection.
        ours, theirs = socket.socketpair()
        given = [[theirs], [ours]]
    started = []
    for place, own in enumerate(given):
        # What isn't its own a program mustn't hold: neither would see that the other one is gone.
        foreign = [channel, *(other for others in given if others is not own for other in others)]
        started.append(_start(files[2 * place : 2 * place + 2], settings, own, foreign))
    for number in files:
        os.close(number)
    for own in given:
        for one in own:
            one.close()
    return _wait(started, channel, time.monotonic() + asked["timeout"])


def _start(files: list[int], settings: Json, given: list[socket.socket], foreign: list[socket.socket]) -> int:
    """Fork the supervisor of a program, which reads what is asked in the first file and answers in the other."""
    uid, gid = os.getuid(), os.getgid()
    pid = kernel.clone()
    if pid == 0:
        code = 1
        asking, answer = files
        try:
            for one in foreign:
                one.close()
            # It isn't for programs, who have no use for this interpreter's.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            asked = json.loads(os.read(asking, os.fstat(asking).st_size))
            os.close(asking)
            supervisor.supervise(asked, settings, given, answer, uid, gid)
            code = 0
        except BaseException as error:  # noqa: BLE001 - the boundary: it mustn't become another zygote
            os.ftruncate(answer, 0)
            os.pwrite(answer, json.dumps({"broken": f"{type(error).__name__}: {error}"}).encode(), 0)
        finally:
            os._exit(code)
    return pid


def _wait(started: list[int], channel: socket.socket, deadline: float) -> list[bool]:
    """Wait for supervisors to end; whoever isn't done in time, or when nobody wants to know, is ended."""
    open_ones = {os.pidfd_open(pid): place for place, pid in enumerate(started)}
    poller = select.poll()
    for number in (*open_ones, channel.fileno()):
        poller.register(number, select.POLLIN)
    while open_ones:
        left_s = deadline - time.monotonic()
        found = poller.poll(max(left_s, 0) * 1000)
        if left_s <= 0 or any(number == channel.fileno() for number, _ in found):
            break
        for number, _ in found:
            poller.unregister(number)
            os.close(number)
            if open_ones.pop(number) == len(started) - 1:
                deadline = min(deadline, time.monotonic() + JUDGE_GRACE_S)
    for number in open_ones:
        os.close(number)
    answered = []
    for pid in started:
        os.kill(pid, signal.SIGKILL)
        answered.append(os.WIFEXITED(os.waitpid(pid, 0)[1]))
    return answered


def receive(channel: socket.socket) -> tuple[Any, list[int]]:
    """The next message and the files that came with it; None if the other side is gone."""
    head, files, _, _ = socket.recv_fds(channel, 4, MOST_FILES)
    body = _exactly(channel, struct.unpack("!I", head)[0]) if len(head) == 4 else None
    return (None if body is None else json.loads(body)), files


def send(channel: socket.socket, body: bytes) -> None:
    """Send a message."""
    channel.sendall(struct.pack("!I", len(body)) + body)


def _exactly(channel: socket.socket, size: int) -> bytes | None:
    blocks = []
    while size:
        block = channel.recv(min(size, 1 << 20))
        if not block:
            return None
        blocks.append(block)
        size -= len(block)
    return b"".join(blocks)
