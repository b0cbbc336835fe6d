"""The seccomp filter of programs: what they may not ask of the kernel, though they could not do much with it."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from functools import cache
from typing import Any, TypeAlias

_REFUSED = (
    # Namespaces and file systems.
    "mount", "umount", "umount2", "pivot_root", "chroot", "unshare", "setns", "fsopen", "fsconfig", "fsmount", "fspick",
    "move_mount", "open_tree", "mount_setattr", "quotactl", "quotactl_fd", "swapon", "swapoff", "open_by_handle_at",
    "name_to_handle_at", "fanotify_init", "fanotify_mark", "acct", "nfsservctl",
    # Other processes.
    "ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "process_mrelease", "kcmp", "pidfd_getfd",
    # The kernel itself.
    "bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register", "kexec_load",
    "kexec_file_load", "init_module", "finit_module", "delete_module", "create_module", "query_module",
    "get_kernel_syms", "reboot", "syslog", "iopl", "ioperm", "modify_ldt", "vm86", "vm86old", "lookup_dcookie",
    "add_key", "request_key", "keyctl", "settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "stime",
    "sethostname", "setdomainname", "vhangup", "uselib", "ustat", "sysfs", "_sysctl", "personality", "move_pages",
    "migrate_pages", "mbind", "set_mempolicy", "set_mempolicy_home_node", "get_mempolicy", "ioprio_set",
    "memfd_secret", "vmsplice", "remap_file_pages",
)  # fmt: skip
_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
"""Flags of clone: https://man7.org/linux/man-pages/man2/clone.2.html."""
_FAMILIES = (1, 2, 10)
"""Of sockets that there may be: AF_UNIX, AF_INET, AF_INET6."""
_TERMINALS = (0x5412, 0x541C)
"""TIOCSTI and TIOCLINUX type into a terminal: https://man7.org/linux/man-pages/man2/ioctl_tty.2.html."""
_OF_OTHERS = (
    "prlimit64", "sched_setaffinity", "sched_setattr", "sched_setparam", "sched_setscheduler", "pidfd_open",
)  # fmt: skip
_PRIO_USER = 2
_PROTOCOLS = (33, 132, 136, 262)
"""DCCP, SCTP, UDP-Lite, MPTCP: the kernel would load what they need, which is little used and little tested."""
_UNSEEN = ("memfd_create", "shmget")


@cache
def compiled(*, network: bool = False, cgroup: bool = True) -> bytes:
    """The filter as the kernel takes it (`struct sock_filter[]`), for this machine.

    Args:
        network: Whether programs have the machine's network.
        cgroup: Whether one limits their memory; without, memory that no process has mapped is refused.

    Raises:
        ImportError: pyseccomp or libseccomp is missing.
        RuntimeError: As above, if it finds no library.
    """
    import pyseccomp

    rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    # A system call of another architecture (32 bits on x86) would go by other numbers: such a process is ended.
    rules.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)
    for name in (*_REFUSED, *(() if cgroup else _UNSEEN)):
        # Some architectures lack some, and older libraries don't know the newest.
        if pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name) != -1:
            rules.add_rule(pyseccomp.ERRNO(errno.EPERM), name)
    for name, *arguments in (*_flags(), *_sockets(network=network), *_of_others(), *_terminals()):
        given = [pyseccomp.Arg(place, pyseccomp.MASKED_EQ, mask, value) for place, mask, value in arguments]
        rules.add_rule(pyseccomp.ERRNO(errno.EPERM), name, *given)
    # Its flags are in memory, where a filter can't look. libc goes back to clone.
    rules.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "clone3")
    rules.add_rule(pyseccomp.ERRNO(errno.EPERM), "socket", pyseccomp.Arg(0, pyseccomp.GT, _FAMILIES[-1]))
    with tempfile.TemporaryFile() as file:
        rules.export_bpf(file)
        file.seek(0, os.SEEK_SET)
        return file.read()


# A call, and for some of its arguments: which one, the bits that count, and what they are where it is refused. An `int`
# is half of a register, and what is in the other half the kernel doesn't look at.
_Refusal: TypeAlias = tuple[Any, ...]
_INT = 0xFFFFFFFF


def _flags() -> Iterator[_Refusal]:
    return (("clone", (0, 1 << bit, 1 << bit)) for bit in range(32) if _NAMESPACES >> bit & 1)


def _sockets(*, network: bool) -> Iterator[_Refusal]:
    # The names of abstract sockets go by the network: with it those of the machine's services would be within reach.
    allowed = _FAMILIES[1:] if network else _FAMILIES
    yield from (("socket", (0, _INT, family)) for family in range(_FAMILIES[-1] + 1) if family not in allowed)
    yield from (("socket", (2, _INT, protocol)) for protocol in _PROTOCOLS)


def _of_others() -> Iterator[_Refusal]:
    """The first process of the namespaces is what holds the program to its limits."""
    yield from ((call, (0, _INT, 1)) for call in _OF_OTHERS)
    yield "setpriority", (0, _INT, 0), (1, _INT, 1)
    yield "setpriority", (0, _INT, _PRIO_USER)


def _terminals() -> Iterator[_Refusal]:
    return (("ioctl", (1, _INT, request)) for request in _TERMINALS)
