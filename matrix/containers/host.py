"""The image `host`: this machine's own programs, read-only, and nothing else of it."""

from __future__ import annotations

from pathlib import Path

HOST = "host"
"""What stands for it in `engine.images`."""

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_ETC = ("/etc/alternatives", "/etc/ld.so.cache", "/etc/ssl/certs", "/etc/ca-certificates", "/etc/pki", "/etc/localtime")
_SKELETON = """\
set -e
cd "$1"
mkdir -p etc home opt root run srv tmp usr var/tmp
chmod 700 root
chmod 1777 tmp var/tmp
echo 'root:x:0:0:root:/root:/bin/sh' > etc/passwd
echo 'root:x:0:' > etc/group
shift
while [ $# -gt 0 ]; do ln -s "$2" ".$1"; shift 2; done
"""


def skeleton(folder: Path) -> list[str]:
    """A command that makes what is in the image beside the machine's programs."""
    links = [part for path in map(Path, _SYSTEM) if path.is_symlink() for part in (str(path), str(path.readlink()))]
    return ["sh", "-c", _SKELETON, "sh", str(folder), *links]


def binds() -> list[str]:
    """Options of bubblewrap that bring the machine's programs in."""
    seen = [path for path in (*_SYSTEM, *_ETC) if Path(path).exists() and not Path(path).is_symlink()]
    return [part for path in seen for part in ("--ro-bind", path, path)]
