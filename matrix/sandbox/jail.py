"""The command that puts a process where programs run: bubblewrap, and what has to be done before it as root."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from matrix.errors import AppError
from matrix.spec.services import SandboxEngine

INSIDE = Path(__file__).parent / "inside"
"""Folder of what runs in it."""

NOBODY = "65534"
"""Who runs it where this process is root: a number that owns nothing."""

_ROOT = 0
_OWN = ("dev", "home", "media", "mnt", "proc", "root", "run", "sys", "tmp", "work", "matrix", "boot", "lost+found")
"""Folders of `engine.root` that programs don't see, or have one of their own in place of."""
_SYSTEM = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
_ETC = ("/etc/alternatives", "/etc/ld.so.cache", "/etc/ssl/certs", "/etc/ca-certificates", "/etc/pki", "/etc/localtime")
_ETC_NETWORK = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf")
_STAGES = ("/mnt", "/media", "/srv", "/opt")
"""Empty folders that nearly every system has; only their names are used, in a mount namespace of our own."""
_STAGE = """\
mount -t tmpfs -o mode=755 tmpfs "$1" || exit 1
stage=$1; count=$2; shift 2
while [ "$count" -gt 0 ]; do
    if [ -d "$1" ]; then mkdir "$stage/$count"; else : > "$stage/$count"; fi
    mount --bind "$1" "$stage/$count" || exit 1
    shift; count=$((count - 1))
done
exec "$@"
"""
_ZYGOTE = "import sys; sys.path.insert(0, '/matrix'); from inside.zygote import main; main()"
_ENTER = 'while [ "$1" != -- ]; do echo $$ > "$1" || exit 1; shift; done; shift; exec "$@"'


@dataclass(frozen=True)
class Bind:
    """Something of the host that programs see, read-only."""

    source: str
    target: str


def check_host() -> None:
    """See whether this machine has what it takes.

    Raises:
        AppError: With what is missing, and how to get it.
    """
    needed = {"bwrap": "bubblewrap"}
    if os.geteuid() == _ROOT:
        needed |= {"setpriv": "util-linux", "unshare": "util-linux", "mount": "mount"}
    missing = [f"{command} (package {package})" for command, package in needed.items() if shutil.which(command) is None]
    try:
        from matrix.sandbox.filter import compiled

        compiled()
    except (ImportError, RuntimeError) as error:
        missing.append(f"pyseccomp with libseccomp (pip install 'matrix-llm[sandbox]', package libseccomp2): {error}")
    if missing:
        raise AppError(f"This machine can't isolate programs; it lacks {', '.join(missing)}. Nothing was run.")


def command(engine: SandboxEngine, entrances: list[Path]) -> list[str]:
    """The command line of a worker.

    Args:
        engine: What programs get.
        entrances: Files of its cgroup.

    Raises:
        AppError: The interpreter isn't there.
    """
    system, python = _system(engine), _interpreter(engine)
    binds = [*system, *python.binds, Bind(str(INSIDE), "/matrix/inside")]
    before: list[str] = []
    if os.geteuid() == _ROOT:
        # Who isn't root may not be able to get to where they are.
        stage = _stage(binds)
        sources = [bind.source for bind in binds]
        count = len(sources)
        binds = [Bind(f"{stage}/{count - place}", bind.target) for place, bind in enumerate(binds)]
        before = [
            *("unshare", "--mount", "--propagation", "private", "sh", "-c", _STAGE, "sh", stage, str(count), *sources),
            *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=-all"),
            "--no-new-privs",
        ]
    enter = ["sh", "-c", _ENTER, "sh", *map(str, entrances), "--"]
    return [*enter, *before, *_bubblewrap(engine, binds), "--", python.path, "-I", "-B", "-c", _ZYGOTE]


def _bubblewrap(engine: SandboxEngine, binds: list[Bind]) -> list[str]:
    options = ["bwrap", "--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    options += [] if engine.network else ["--unshare-net"]
    options += [
        "--die-with-parent",
        "--new-session",
        "--clearenv",
        "--cap-drop",
        "ALL",
        "--uid",
        "1000",
        "--gid",
        "1000",
    ]
    options += ["--hostname", "sandbox"]
    for name, value in _ENVIRONMENT.items():
        options += ["--setenv", name, value]
    for bind in sorted(binds, key=lambda bind: bind.target):
        options += ["--ro-bind", bind.source, bind.target]
    for path, target in _links(engine).items():
        options += ["--symlink", target, path]
    for place in ("/tmp", "/work"):  # noqa: S108 - in there
        options += ["--dir", place]
    # What is on none of the mounts above is in memory, and would outlive a program.
    return [*options, "--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/"]


def _links(engine: SandboxEngine) -> dict[str, str]:
    """Links of the programs' root, by path."""
    links = {f"/{path.name}": str(path.readlink()) for path in _top(engine) if path.is_symlink()}
    return links if engine.root else links | {f"/etc/{name}": f"/matrix/inside/{name}" for name in ("passwd", "group")}


_ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/work",
    "TMPDIR": "/tmp",  # noqa: S108 - in there
    "LANG": "C.UTF-8",
    "USER": "sandbox",
    # One interpreter for each program at a time: threads for all cores would only be in each other's way.
    "OMP_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class _Interpreter:
    path: str
    binds: list[Bind]


def _interpreter(engine: SandboxEngine) -> _Interpreter:
    if engine.root is not None and engine.python is None:
        for folder in ("usr/local/bin", "usr/bin"):
            if Path(engine.root, folder, "python3").exists():
                return _Interpreter(f"/{folder}/python3", [])
        raise AppError(f"engine.root={engine.root} has no usr/bin/python3, which every program needs")
    if engine.python is None:
        name = f"python{sys.version_info.major}.{sys.version_info.minor}"
        path, prefixes = Path(sys.base_prefix, "bin", name), [Path(sys.base_prefix)]
    else:
        path = Path(engine.python).expanduser()
        if not path.exists():
            raise AppError(f"engine.python={engine.python} isn't there")
        # A virtual environment, and what it was made from.
        prefixes = [path.parent.parent, path.resolve().parent.parent]
    for prefix in prefixes:
        if Path.home().is_relative_to(prefix):
            raise AppError(
                f"programs would see {prefix}, where the interpreter {path} is installed, and so somebody's files; "
                "give another one in engine.python, such as that of a virtual environment"
            )
    inside_usr = engine.root is None
    binds = [
        Bind(str(prefix), str(prefix))
        for prefix in dict.fromkeys(prefixes)
        if not (inside_usr and prefix.is_relative_to("/usr"))
    ]
    return _Interpreter(str(path), binds)


def _system(engine: SandboxEngine) -> list[Bind]:
    """The file system of programs, but for the interpreter and what is in memory."""
    found = [Bind(str(path), f"/{path.name}") for path in _top(engine) if path.is_dir() and not path.is_symlink()]
    if engine.root is None:
        found += _host(*_ETC, *(_ETC_NETWORK if engine.network else ()))
    return found


def _top(engine: SandboxEngine) -> list[Path]:
    """What stands in the programs' root: all of `engine.root`, or of this machine what belongs to its system."""
    if engine.root is None:
        return [path for name in _SYSTEM if (path := Path("/", name)).exists()]
    folder = Path(engine.root).expanduser().resolve()
    if not folder.is_dir():
        raise AppError(f"engine.root={engine.root} is no folder")
    if Path.home().is_relative_to(folder):
        raise AppError(f"engine.root={engine.root} holds the files of this machine: give a folder of its own")
    return [path for path in sorted(folder.iterdir()) if path.name not in _OWN]


def _host(*paths: str) -> Iterator[Bind]:
    return (Bind(path, path) for path in paths if Path(path).exists())


def _stage(binds: list[Bind]) -> str:
    """A folder that none of what is shown lies in, since it is covered."""
    for stage in _STAGES:
        if Path(stage).is_dir() and not any(Path(bind.source).is_relative_to(stage) for bind in binds):
            return stage
    raise AppError(f"what programs are to see lies below each of {', '.join(_STAGES)}, and one has to be free")
