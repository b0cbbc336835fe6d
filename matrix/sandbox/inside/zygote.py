"""A warm interpreter in a sandbox, which forks for each program, and never runs one itself.

It is asked over the socket that is its stdin: a length of 4 bytes and JSON, both ways. First come the settings, then
one request after another, each answered before the next; what comes in between ends the program that runs. It ends with
the socket. This folder is a package of its own there (`inside`), with nothing but the standard library: its memory is
what programs begin with.
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

GRACE_S = 2.0
"""Seconds after a program's time limit after which its supervisor is believed to hang."""
JUDGE_GRACE_S = 1.0
"""Seconds that the judge has longer than what it judges; and that this has when the judge is done."""


def main() -> None:
    """Serve until the socket is closed."""
    channel = socket.socket(fileno=os.dup(0))
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    settings = receive(channel)
    settings["filter"] = bytes.fromhex(settings["filter"])
    for name in settings["preload"]:
        importlib.import_module(name)
    # It led here; programs begin without it.
    del sys.path[0]
    # Not looked at, and so not written to and copied, in each fork.
    gc.collect()
    gc.freeze()
    send(channel, b'{"ready": true}')
    while True:
        asked = receive(channel)
        if asked is None:
            return
        # Empty: it came to end a program that was over already, or the one before.
        if asked:
            send(channel, run(asked, settings, channel))


def run(asked: Json, settings: Json, channel: socket.socket) -> bytes:
    """Run the program, and beside it the test, if there is one; gives a JSON list of what their supervisors say."""
    if "test" not in asked:
        programs: list[tuple[Json, list[socket.socket]]] = [(asked, [])]
    else:
        # Each ends in a sandbox of its own; all that they share is this connection.
        ours, theirs = socket.socketpair()
        judging = {"kind": "judge", "timeout": asked["timeout"] + JUDGE_GRACE_S, **asked["test"]}
        judging.update({name: asked[name] for name in ("memory_mb", "output", "disk_mb", "limits", "watch_memory")})
        programs = [({**asked, "kind": "candidate"}, [theirs]), (judging, [ours])]
    # What isn't its own a program mustn't hold: neither would see that the other one is gone.
    foreign = [
        [channel, *(other for _, others in programs if others is not given for other in others)]
        for _, given in programs
    ]
    started = [_start(one, settings, given, close) for (one, given), close in zip(programs, foreign, strict=True)]
    for _, given in programs:
        for one in given:
            one.close()
    answers = _wait(started, channel, time.monotonic() + asked["timeout"] + JUDGE_GRACE_S + GRACE_S)
    return b"[" + b",".join(answer or b"null" for answer in answers) + b"]"


def _start(asked: Json, settings: Json, given: list[socket.socket], foreign: list[socket.socket]) -> tuple[int, int]:
    """Fork the supervisor of a program; gives its process and what it answers on."""
    reading, writing = os.pipe()
    uid, gid = os.getuid(), os.getgid()
    pid = kernel.clone()
    if pid == 0:
        code = 1
        try:
            for one in foreign:
                one.close()
            os.close(reading)
            supervisor.supervise(asked, settings, given, writing, uid, gid)
            code = 0
        except BaseException as error:  # noqa: BLE001 - the boundary: it mustn't become another zygote
            os.write(writing, json.dumps({"broken": f"{type(error).__name__}: {error}"}).encode())
        finally:
            os._exit(code)
    os.close(writing)
    return pid, reading


def _wait(started: list[tuple[int, int]], channel: socket.socket, deadline: float) -> list[bytes]:
    """Wait for the answers; whoever isn't done in time, or when nobody wants to know, is ended."""
    answers = [b""] * len(started)
    open_ones = {reading: place for place, (_, reading) in enumerate(started)}
    poller = select.poll()
    for reading in open_ones:
        poller.register(reading, select.POLLIN)
    poller.register(channel, select.POLLIN)
    while open_ones:
        left_s = deadline - time.monotonic()
        found = poller.poll(max(left_s, 0) * 1000)
        if left_s <= 0 or any(number == channel.fileno() for number, _ in found):
            break
        for reading, _ in found:
            block = os.read(reading, 1 << 20)
            place = open_ones[reading]
            answers[place] += block
            if not block:
                poller.unregister(reading)
                del open_ones[reading]
                if place == len(started) - 1:
                    deadline = min(deadline, time.monotonic() + JUDGE_GRACE_S)
    for place, (pid, reading) in enumerate(started):
        if reading in open_ones:
            answers[place] = b""
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reading)
    return answers


def receive(channel: socket.socket) -> Any:
    """The next message; None if the other side is gone."""
    head = _exactly(channel, 4)
    body = None if head is None else _exactly(channel, struct.unpack("!I", head)[0])
    return None if body is None else json.loads(body)


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
