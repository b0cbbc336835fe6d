"""What Python's library doesn't offer of Linux: namespaces, mounts, capabilities, seccomp. Standard library only."""

from __future__ import annotations

import ctypes
import os
import resource

_LIBC = ctypes.PyDLL(None, use_errno=True)
_CLONE = {"x86_64": 56, "aarch64": 220}
_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000
_SIGCHLD = 17
_NOSUID, _NODEV = 2, 4
_SET_PDEATHSIG, _SET_DUMPABLE, _CAPBSET_DROP, _SET_SECCOMP, _SET_NO_NEW_PRIVS = 1, 4, 24, 22, 38
_FILTER = 2
_CAPABILITIES = 64
# https://man7.org/linux/man-pages/man2/capget.2.html
_VERSION_3 = (ctypes.c_uint32 * 2)(0x20080522, 0)
_NONE = (ctypes.c_uint32 * 6)()
_SIGKILL = 9

UID = 1000
"""User that programs see themselves as."""


def clone() -> int:
    """Fork into fresh user, process, mount, IPC and host name namespaces; gives what fork does.

    Raises:
        OSError: The kernel refuses.
    """
    # Without what Python does around os.fork: no other thread is there that could hold a lock, and each page that it
    # touches would have to be copied.
    number = _CLONE[os.uname().machine]
    pid: int = _LIBC.syscall(number, _NEWUSER | _NEWPID | _NEWNS | _NEWIPC | _NEWUTS | _SIGCHLD, 0, 0, 0, 0)
    error = ctypes.get_errno()
    if pid < 0:
        raise OSError(error, os.strerror(error), "clone")
    return pid


def settle(uid: int, gid: int, disk_mb: int) -> None:
    """Be at home in fresh namespaces, as their first process: users, /proc, and folders that are empty.

    Args:
        uid: Who this process was before.
        gid: Its group.
        disk_mb: Of each of /work, /tmp and /dev/shm.
    """
    _prctl(_SET_PDEATHSIG, _SIGKILL)
    _be(uid, gid)
    # Its own processes may not look into it.
    _prctl(_SET_DUMPABLE, 0)
    for place in ("/work", "/tmp", "/dev/shm"):
        _mount("tmpfs", place, f"size={disk_mb}m,nr_inodes=65536,mode=755,uid={UID},gid={UID}")
    if not _try_mount("proc", "/proc", ""):
        # Where the host hides parts of its own /proc: better none than that of the worker.
        _mount("tmpfs", "/proc", "size=0,nr_inodes=1,mode=555")


def restrict(limits: dict[str, int], program: bytes) -> None:
    """Give up all that a program doesn't need, for good.

    Args:
        limits: Of `resource`, by name (`RLIMIT_NPROC`).
        program: A seccomp filter, compiled.
    """
    for name, limit in limits.items():
        resource.setrlimit(getattr(resource, name), (limit, limit))
    for capability in range(_CAPABILITIES):
        _LIBC.prctl(_CAPBSET_DROP, capability, 0, 0, 0)
    _check(_LIBC.capset(_VERSION_3, _NONE), "capset")
    _prctl(_SET_NO_NEW_PRIVS, 1)
    lines = ctypes.create_string_buffer(program, len(program))
    pointer = ctypes.cast(lines, ctypes.c_void_p).value
    filled = _Program(len(program) // 8, pointer)
    _prctl(_SET_SECCOMP, _FILTER, ctypes.addressof(filled))


def _be(uid: int, gid: int) -> None:
    _write("/proc/self/uid_map", b"%d %d 1" % (UID, uid))
    if _read("/proc/self/setgroups") != b"deny":
        _write("/proc/self/setgroups", b"deny")
    _write("/proc/self/gid_map", b"%d %d 1" % (UID, gid))


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("lines", ctypes.c_void_p)]


def has_proc() -> bool:
    """Whether fresh namespaces get a /proc of their own here."""
    uid, gid = os.getuid(), os.getgid()
    pid = clone()
    if pid == 0:
        code = 1
        try:
            _be(uid, gid)
            code = 0 if _try_mount("proc", "/proc", "") else 1
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1] == 0


def first_to_die() -> None:
    """Have the kernel end this process before others when memory runs out."""
    # Without it what /proc has of this process isn't its own.
    _prctl(_SET_DUMPABLE, 1)
    if os.path.exists("/proc/self/oom_score_adj"):
        _write("/proc/self/oom_score_adj", b"1000")


def _mount(kind: str, place: str, options: str) -> None:
    if not _try_mount(kind, place, options):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), f"mount {place}")


def _try_mount(kind: str, place: str, options: str) -> bool:
    return bool(_LIBC.mount(kind.encode(), place.encode(), kind.encode(), _NOSUID | _NODEV, options.encode()) == 0)


def _prctl(option: int, value: int, more: int = 0) -> None:
    _check(_LIBC.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(more), 0, 0), f"prctl {option}")


def _check(result: int, what: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), what)


def _write(path: str, data: bytes) -> None:
    # Not with `open`: what that touches would be copied, a millisecond in each fork.
    number = os.open(path, os.O_WRONLY)
    os.write(number, data)
    os.close(number)


def _read(path: str) -> bytes:
    number = os.open(path, os.O_RDONLY)
    data = os.read(number, 100)
    os.close(number)
    return data.strip()
