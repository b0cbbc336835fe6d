"""A warm interpreter in a sandbox, which forks for each program, and never runs one itself.

It is asked over the socket that is its stdin, in messages of JSON. First come the settings, then one request after
another, each answered before the next; what comes in between ends the programs that run. It ends with the socket.

A request says how long it may take, and brings two descriptors for each of its programs: of a file with what is to be
run, and of one for what came of it. Only the fork that runs it reads that: what the zygote had in its memory, later
programs, and the one that a test judges, could find in theirs. This folder is a package of its own here (`inside`),
with nothing but the standard library.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time

from . import kernel, supervisor

GRACE_S = 2.0
"""Seconds after a request's time limit after which its supervisors are believed to hang."""
JUDGED_S = 1.0
"""Seconds that what is judged has to end when its judge is done."""
MESSAGE = 1 << 16
"""Bytes of a message at most."""
_DESCRIPTORS = 4


def main() -> None:
    """Serve until the socket is closed."""
    channel = socket.socket(fileno=os.dup(0))
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    settings = json.loads(channel.recv(MESSAGE))
    settings["filter"] = bytes.fromhex(settings["filter"])
    for name in settings["preload"]:
        importlib.import_module(name)
    # It led here; programs begin without it.
    del sys.path[0]
    # Not looked at, and so not written to and copied, in each fork.
    gc.collect()
    gc.freeze()
    channel.send(b"ready")
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, MESSAGE, _DESCRIPTORS)
        if not message:
            return
        # Without any it came to end programs that were over already.
        if descriptors:
            run(json.loads(message)["timeout"], descriptors, settings, channel)
            channel.send(b"done")


def run(timeout_s: float, descriptors: list[int], settings: supervisor.Json, channel: socket.socket) -> None:
    """Run a program, or a program and its judge, to the end."""
    pairs = [descriptors[place : place + 2] for place in range(0, len(descriptors), 2)]
    # Each is in a sandbox of its own; all that they share is this connection.
    ends = [[end.detach()] for end in socket.socketpair()] if len(pairs) > 1 else [[]]
    everything = [*descriptors, *(end for some in ends for end in some)]
    started = []
    for pair, given in zip(pairs, ends, strict=True):
        # What isn't its own a program mustn't hold: it could read the other one's, or keep the connection open.
        foreign = [channel.fileno(), *(one for one in everything if one not in {*pair, *given})]
        started.append(_start(pair, given, foreign, settings))
    for one in everything:
        os.close(one)
    _wait(started, channel, time.monotonic() + timeout_s + GRACE_S)


def _start(pair: list[int], given: list[int], foreign: list[int], settings: supervisor.Json) -> int:
    """Fork the supervisor of a program; gives its process."""
    request, answer = pair
    uid, gid = os.getuid(), os.getgid()
    pid = kernel.clone()
    if pid == 0:
        code = 1
        try:
            for one in foreign:
                os.close(one)
            supervisor.supervise(request, answer, given, settings, uid, gid)
            code = 0
        except BaseException as error:  # noqa: BLE001 - the boundary: it mustn't become another zygote
            os.write(answer, json.dumps({"broken": f"{type(error).__name__}: {error}"}).encode())
        finally:
            os._exit(code)
    return pid


def _wait(started: list[int], channel: socket.socket, deadline: float) -> None:
    """Wait until they have ended; who hasn't in time, or when nobody wants to know any more, is ended."""
    running = {os.pidfd_open(pid): pid for pid in started}
    descriptors = list(running)
    poller = select.poll()
    for one in (*running, channel.fileno()):
        poller.register(one, select.POLLIN)
    while running:
        left_s = deadline - time.monotonic()
        found = [number for number, _ in poller.poll(max(left_s, 0) * 1000)]
        if left_s <= 0 or channel.fileno() in found:
            break
        for number in found:
            poller.unregister(number)
            if running.pop(number) == started[-1]:
                deadline = min(deadline, time.monotonic() + JUDGED_S)
    for pid in running.values():
        os.kill(pid, signal.SIGKILL)
    for pid in started:
        os.waitpid(pid, 0)
    for one in descriptors:
        os.close(one)
