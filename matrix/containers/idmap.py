"""Mount a folder with other owners, and run a command: `python idmap.py NAMESPACE FOLDER TARGET COMMAND...`.

Who owns a file as number N of this machine owns it in TARGET as what N is outside of the user namespace: so an image's
root is a container's root, which is nobody here (https://docs.kernel.org/filesystems/idmappings.html). mount(8) can do
it from util-linux 2.39 on.
"""

from __future__ import annotations

import ctypes
import os
import sys

# The same numbers on all architectures but alpha; flags from <linux/mount.h> and <linux/fcntl.h>.
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_CLONE, _EMPTY_PATH, _FROM_EMPTY_PATH, _IDMAP = 0x1, 0x1000, 0x4, 0x100000
_HERE = -100


def main(namespace: str, folder: str, target: str, command: list[str]) -> None:
    """Mount, and go on as the command.

    Raises:
        OSError: The file system of the folder can't, or the kernel.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def call(*arguments: object) -> int:
        found: int = libc.syscall(*arguments)
        if found < 0:
            raise OSError(ctypes.get_errno(), f"{folder}: {os.strerror(ctypes.get_errno())}")
        return found

    tree = call(_OPEN_TREE, _HERE, os.fsencode(folder), _CLONE | os.O_CLOEXEC)
    attributes = (ctypes.c_uint64 * 4)(_IDMAP, 0, 0, os.open(namespace, os.O_RDONLY | os.O_CLOEXEC))
    call(_MOUNT_SETATTR, tree, b"", _EMPTY_PATH, attributes, ctypes.sizeof(attributes))
    call(_MOVE_MOUNT, tree, b"", _HERE, os.fsencode(target), _FROM_EMPTY_PATH)
    os.execvp(command[0], command)  # noqa: S606 - a command of ours


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
