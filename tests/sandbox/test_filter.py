"""The seccomp filter, in a real process."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys

import pytest

from matrix.sandbox.filter import compiled

# In a process of its own, since there is no way back. It prints the error of each call, and 0 for none.
PROBE = """
import ctypes, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
program = bytes.fromhex(sys.argv[1])
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("lines", ctypes.c_void_p)]
lines = ctypes.create_string_buffer(program, len(program))
filled = Program(len(program) // 8, ctypes.cast(lines, ctypes.c_void_p).value)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(filled), 0, 0) == 0
for call in sys.argv[2:]:
    ctypes.set_errno(0)
    result = libc.syscall(*(ctypes.c_long(int(one, 0)) for one in call.split(",")))
    print(ctypes.get_errno() if result < 0 else 0)
"""
# Numbers of x86-64.
CLONE, UNSHARE, MOUNT, PTRACE, SOCKET, CLONE3, PRLIMIT, KILL, GETPID, MEMFD, BPF, KEYCTL, IO_URING, SETPRIORITY = (
    56, 272, 165, 101, 41, 435, 302, 62, 39, 319, 321, 250, 425, 141,
)  # fmt: skip
pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers of its calls are those of x86-64")


def errors(calls: list[str], **options: bool) -> list[int]:
    command = [sys.executable, "-c", PROBE, compiled(**options).hex(), *calls]
    return [int(line) for line in subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()]


def test_what_is_refused() -> None:
    calls = [
        f"{UNSHARE},0x10000000", f"{MOUNT},0,0,0,0,0", f"{PTRACE},0,0,0,0", f"{BPF},0,0,0", f"{KEYCTL},0,0,0,0,0",
        f"{IO_URING},1,0", f"{CLONE},0x10000011,0,0,0,0", f"{CLONE},0x20000011,0,0,0,0", f"{CLONE},0x00020011,0,0,0,0",
        f"{SOCKET},16,3,0", f"{SOCKET},17,3,0", f"{SOCKET},40,1,0", f"{SOCKET},38,5,0", f"{SOCKET},2,1,132",
        f"{SOCKET},2,1,262", f"{PRLIMIT},1,7,0,0", f"{SETPRIORITY},0,1,19", f"{SETPRIORITY},2,0,19",
    ]  # fmt: skip
    assert errors(calls) == [errno.EPERM] * len(calls)


def test_the_other_half_of_a_register_changes_nothing() -> None:
    above = 1 << 32
    calls = [f"{PRLIMIT},{above + 1},7,0,0", f"{SOCKET},{above + 16},3,0", f"{SOCKET},2,1,{above + 132}"]
    assert errors(calls) == [errno.EPERM] * len(calls)


def test_what_is_allowed() -> None:
    calls = [
        f"{GETPID}",
        f"{KILL},{os.getpid()},0",
        f"{SOCKET},1,1,0",
        f"{SOCKET},2,1,0",
        f"{SOCKET},10,2,0",
        f"{MEMFD},0,0",
    ]
    assert errors(calls)[:5] == [0] * 5
    assert errors([calls[5]]) == [errno.EFAULT]


def test_libc_falls_back_to_a_call_that_can_be_looked_at() -> None:
    assert errors([f"{CLONE3},0,0"]) == [errno.ENOSYS]


def test_with_the_network_there_are_no_sockets_of_this_machine() -> None:
    assert errors([f"{SOCKET},1,1,0", f"{SOCKET},2,1,0"], network=True) == [errno.EPERM, 0]


def test_without_a_cgroup_there_is_no_memory_that_nobody_has_mapped() -> None:
    assert errors([f"{MEMFD},0,0"], cgroup=False) == [errno.EPERM]


def test_it_is_a_program_for_the_kernel() -> None:
    assert len(compiled()) % 8 == 0
    assert 8 < len(compiled()) // 8 < 4096
    assert ctypes.sizeof(ctypes.c_void_p) == 8
