"""`engine.backend=rootfs`: bubblewrap over an image's files, which stay as they are; what is written is in an overlay.

A container is a folder. Each command mounts the overlay in a mount namespace of its own and runs in a sandbox of its
own, so that nothing runs between two commands, and nothing of one is left when it ends, whatever it started.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import uuid
from dataclasses import replace
from pathlib import Path

from matrix.containers.host import HOST, binds, skeleton
from matrix.containers.place import Place, left_behind, remove_tree, root_folder
from matrix.containers.process import Ended, must, run
from matrix.containers.roots import root_of_containers
from matrix.containers.runtime import PATH, Command, ContainerGoneError
from matrix.errors import AppError
from matrix.sandbox.cgroups import Cgroup, make_cgroup
from matrix.sandbox.filter import compiled
from matrix.spec.services import ContainerEngine

_TOOLS = {"bwrap": "bubblewrap", "mount": "mount", "tar": "tar"} | dict.fromkeys(
    ("unshare", "nsenter", "prlimit"), "util-linux"
)
_COMPRESSIONS = {b"\x1f\x8b": ["--gzip"], b"\xfd7zXZ": ["--xz"], b"\x28\xb5\x2f\xfd": ["--zstd"], b"BZh": ["--bzip2"]}
_LOOK_S = 1.0
"""How often it is looked how much a command has written."""
_LOOK_SHARE = 20
"""Looking takes one part in so many of the time at most."""

_ENTER = 'while [ "$1" != -- ]; do echo $$ > "$1" || exit 125; shift; done; shift; exec "$@"'

_ISOLATION = [
    *("--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", "--die-with-parent", "--new-session"),
    *("--clearenv", "--cap-drop", "ALL", "--hostname", "container"),
]


class Rootfs:
    """See `Runtime`.

    Args:
        engine: Images are folders, archives that tar reads, which are unpacked by the first who asks for them, or
            `host` for this machine's own programs.
    """

    def __init__(self, engine: ContainerEngine) -> None:
        self._engine = engine
        self._unpacked: dict[str, asyncio.Task[Path]] = {}
        self._images: dict[str, Path] = {}
        self._cgroups: dict[str, Cgroup] = {}

    async def open(self) -> None:
        """See `Runtime`."""
        missing = [f"{tool} (package {package})" for tool, package in _TOOLS.items() if shutil.which(tool) is None]
        if missing:
            raise AppError(f"engine.backend=rootfs can't run containers here: this machine lacks {', '.join(missing)}")
        try:
            self._filter = compiled()
        except (ImportError, RuntimeError) as error:
            raise AppError(
                "engine.backend=rootfs can't run containers here: this machine lacks pyseccomp with libseccomp "
                f"(pip install 'matrix-llm[sandbox]', package libseccomp2): {error}"
            ) from error
        for name, image in self._engine.images.items():
            if (problem := missing_image(image)) is not None:
                raise AppError(f"engine.images.{name}={image}: {problem}")
        self._root = root_of_containers()
        root = root_folder()
        for folder in left_behind(root):
            for listed in folder.glob("*/cgroups"):
                for cgroup in listed.read_text().splitlines():
                    await _remove_group(Path(cgroup))
            remove_tree(folder)
        self._place = Place(root)
        await self._try()

    async def close(self) -> None:
        """See `Runtime`."""
        for task in self._unpacked.values():
            task.cancel()
        await asyncio.gather(*self._unpacked.values(), return_exceptions=True)
        for name in list(self._cgroups):
            await self._remove_groups(name)
        await asyncio.to_thread(self._place.remove)
        self._root.close()

    async def start(self, name: str, image: str) -> None:
        """See `Runtime`."""
        files = await self._files(image)
        folder = self._place.folder / name
        folder.mkdir()
        for part in ("lower", "upper", "work", "merged"):
            self._made(folder / part)
        cgroup = make_cgroup(self._engine.processes)
        if cgroup is not None:
            cgroup.limit(self._engine.memory_mb << 20)
            self._cgroups[name] = cgroup
            (folder / "cgroups").write_text("\n".join(str(entrance.parent) for entrance in cgroup.entrances()))
        self._images[name] = files

    async def execute(self, name: str, command: Command) -> Ended:
        """See `Runtime`."""
        if name not in self._images:
            raise ContainerGoneError
        source, sink = os.pipe()
        # The filter is a few KB, and so fits in a pipe as a whole.
        os.write(sink, self._filter)
        os.close(sink)
        line = self._command_line(name, command, source)
        running = asyncio.ensure_future(
            run(
                line,
                limit=command.limit,
                timeout_s=command.timeout_s,
                stdin=command.stdin,
                apart=command.apart,
                environment={"PATH": PATH},
                descriptors=[source],
            )
        )
        watching = asyncio.create_task(self._watch(name, running))
        try:
            return _told(await running)
        except asyncio.CancelledError:
            if watching.done() and not watching.cancelled() and (told := watching.result()) is not None:
                return Ended(137, told, b"", 0, 0.0)
            raise
        finally:
            watching.cancel()

    async def remove(self, name: str) -> None:
        """See `Runtime`."""
        self._images.pop(name, None)
        await self._remove_groups(name)
        folder = self._place.folder / name
        if folder.exists():
            await asyncio.to_thread(remove_tree, folder)

    async def _remove_groups(self, name: str) -> None:
        cgroup = self._cgroups.pop(name, None)
        for entrance in cgroup.entrances() if cgroup else ():
            await _remove_group(entrance.parent)

    def _command_line(self, name: str, command: Command, seccomp: int) -> list[str]:
        folder = self._place.folder / name
        entrances = self._cgroups[name].entrances() if name in self._cgroups else []
        enter = ["sh", "-c", _ENTER, "sh", *map(str, entrances), "--"]
        limits = [] if entrances else self._limits()
        limits = ["prlimit", "--core=0", f"--fsize={self._engine.disk_mb << 20}", *limits]
        image = self._images[name]
        is_ours = image.is_relative_to(self._place.folder)
        programs = binds() if is_ours and image.name == HOST else []
        inside = [*limits, *self._bubblewrap(f"{folder}/merged", programs, command, seccomp)]
        return [*enter, *self._root.over(image, folder, inside, is_ours=is_ours)]

    def _bubblewrap(self, root: str, programs: list[str], command: Command, seccomp: int) -> list[str]:
        engine = self._engine
        options = ["bwrap", *_ISOLATION, *self._root.isolation, "--seccomp", str(seccomp), "--bind", root, "/"]
        options += [*programs, "--proc", "/proc", "--dev", "/dev"]
        if engine.network:
            options += ["--ro-bind-try", "/etc/resolv.conf", "/etc/resolv.conf"]
        else:
            options += ["--unshare-net"]
        for inside, source in engine.mounts.items():
            options += ["--ro-bind", source, inside]
        environment = {"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8"}
        for key, value in (environment | engine.environment | command.env).items():
            options += ["--setenv", key, value]
        return [*options, *engine.args, "--chdir", command.cwd or "/", "--", *command.arguments]

    def _limits(self) -> list[str]:
        """Where there are no cgroups: for each process, and for all of this user's below."""
        return [f"--data={self._engine.memory_mb << 20}", f"--nproc={self._engine.processes}"]

    async def _watch(self, name: str, running: asyncio.Future[Ended]) -> bytes | None:
        """End a command that has written more than it may, and say so."""
        upper = self._place.folder / name / "upper"
        loop = asyncio.get_running_loop()
        wait_s = _LOOK_S
        while True:
            await asyncio.sleep(wait_s)
            began = loop.time()
            # A file that is being removed isn't found: du goes on, and ends with 1.
            told = await run(self._root.inside(["du", "-smx", "--", str(upper)]), limit=1 << 16, apart=True)
            used_mb = int(told.output.split()[0]) if told.output else 0
            wait_s = max(_LOOK_S, _LOOK_SHARE * (loop.time() - began))
            if used_mb > self._engine.disk_mb and not running.done():
                running.cancel()
                return b"[ended: %d MB are written, and engine.disk_mb is %d]\n" % (used_mb, self._engine.disk_mb)

    async def _files(self, image: str) -> Path:
        path = Path(HOST) if image == HOST else _found(image)
        if path.is_dir() and image != HOST:
            return path
        if image not in self._unpacked or _has_failed(self._unpacked[image]):
            into = self._place.folder / f"image-{uuid.uuid4().hex[:12]}"
            into.mkdir()
            making = self._make_host(into / HOST) if image == HOST else self._unpack(path, into / "files")
            self._unpacked[image] = asyncio.create_task(making)
        # Others wait for it, too.
        return await asyncio.shield(self._unpacked[image])

    def _made(self, folder: Path) -> None:
        folder.mkdir()
        self._root.own(folder)

    async def _make_host(self, into: Path) -> Path:
        self._made(into)
        await must(self._root.inside(skeleton(into)), "the image of this machine's programs can't be made")
        return into

    async def _unpack(self, archive: Path, into: Path) -> Path:
        """Unpack an archive as the containers' root does it: it can make no devices, and so leaves them out."""
        self._made(into)
        line = ["tar", "--extract", "--preserve-permissions", *_kind(archive), *self._root.unpack, "--file=-"]
        line += ["--anchored", "--exclude=dev/*", "--exclude=./dev/*", "-C", str(into)]
        with archive.open("rb") as file:
            await must(self._root.inside(line), f"image {archive} can't be unpacked", stdin=file)
        return into

    async def _try(self) -> None:
        """See that a container runs, on this machine's own files.

        Raises:
            AppError: It does not.
        """
        lower = self._place.folder / "image"
        self._made(lower)
        await self.start("try", str(lower))
        own = self._engine.model_copy(update={"args": ["--ro-bind", "/", "/"], "mounts": {}, "environment": {}})
        configured, self._engine = self._engine, own
        ended = await self.execute("try", Command(["/bin/sh", "-c", "exit 42"], timeout_s=30, limit=4096))
        self._engine = configured
        await self.remove("try")
        if ended.exit_code != 42:
            await self.close()
            said = ended.output.decode(errors="replace").strip()
            raise AppError(
                "engine.backend=rootfs can't run containers here: overlays or namespaces don't work in "
                f"{self._place.folder.parent} (engine.env.TMPDIR may name another folder): {said}"
            )


def missing_image(image: str) -> str | None:
    """What is wrong with an entry of `engine.images` on this machine; None: nothing, or it depends on what is asked."""
    path = Path(image).expanduser().absolute()
    if image == HOST or "{name}" in image:
        return None
    if not path.exists():
        return "there is no such folder or archive"
    if path.is_dir() and set(str(path)) & set(":,\\"):
        return "the name of a folder can't have one of `:`, `,` and `\\` in it"
    return None


def _found(image: str) -> Path:
    if (problem := missing_image(image)) is not None:
        raise AppError(f"image {image}: {problem}")
    return Path(image).expanduser().absolute()


def _told(ended: Ended) -> Ended:
    """What bubblewrap says of a folder or a program that isn't there has the exit code that a shell gives it."""
    said = ended.stderr or ended.output
    is_its_own = ended.exit_code == 1 and said.startswith((b"bwrap: execvp ", b"bwrap: Can't chdir "))
    return replace(ended, exit_code=127) if is_its_own else ended


def _kind(archive: Path) -> list[str]:
    """What tar has to be told of an archive that it doesn't open itself."""
    with archive.open("rb") as file:
        begin = file.read(6)
    return next((option for magic, option in _COMPRESSIONS.items() if begin.startswith(magic)), [])


def _has_failed(task: asyncio.Task[Path]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


async def _remove_group(cgroup: Path) -> None:
    """Remove a cgroup; the kernel takes a moment to see that its last process has gone."""
    for _ in range(100):
        if _is_removed(cgroup):
            return
        await asyncio.sleep(0.02)
    raise AppError(f"the processes in {cgroup} don't end")


def _is_removed(cgroup: Path) -> bool:
    try:
        cgroup.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
