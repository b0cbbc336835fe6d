"""Apps without a model: a sandbox for code that nobody trusts (docs/sandbox.md), containers (docs/containers.md)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from matrix.spec.engine import (
    AppEngine,
    Gateway,
    OpenAIEngine,
    SglangEngine,
    SimulatedEngine,
    VllmEngine,
)


class SandboxEngine(AppEngine):
    """Runs programs that nobody trusts, each in namespaces of its own without a network."""

    kind: Literal["sandbox"]
    cpus: float = Field(default=1, ge=0)
    workers: int | None = Field(default=None, gt=0)
    """Programs that a replica runs at a time; None: one for each of its `cpus`."""
    max_queue: int = Field(default=4096, ge=0)
    """Programs that may wait for a worker; more are refused with 429."""
    languages: dict[str, str] = {
        "python": "python",
        "bash": "bash main.sh",
        "c": "gcc -O1 -o program main.c -lm && ./program",
        "node": "node main.js",
    }
    """From a language to the shell command that runs it, with the file `main.ENDING` that its code is written to;
    `python` alone is a warm interpreter."""
    python: str | None = None
    """The interpreter; None: the one that matrix runs in, without its packages."""
    preload: list[str] = [
        "collections", "copy", "dataclasses", "datetime", "functools", "hashlib", "heapq", "itertools", "json", "math",
        "random", "re", "string", "typing",
    ]  # fmt: skip
    """Modules that are loaded before a program comes, for all programs."""
    root: str | None = None
    """Folder that is the programs' root, read-only; None: this machine's /usr and the interpreter."""
    network: bool = False
    """Whether programs reach the network."""
    timeout_s: float = Field(default=10, gt=0)
    """Seconds that a program may take, if its request doesn't say."""
    max_timeout_s: float = Field(default=300, gt=0)
    """Longest that a request may ask for."""
    memory_mb: int = Field(default=512, gt=0)
    """Memory of a program, if its request doesn't say."""
    max_memory_mb: int = Field(default=4096, gt=0)
    """Most that a request may ask for."""
    disk_mb: int = Field(default=64, gt=0)
    """What a program may write to its folder and to /tmp, each; it is in memory, and counts there, too."""
    output_kb: int = Field(default=1024, gt=0)
    """Of a program's stdout, and of its stderr; one that writes more is ended."""
    processes: int = Field(default=64, gt=0)
    """Processes and threads of a program at a time."""


ANY = "*"
"""Any name of an image, in `ContainerEngine.images`."""


class ContainerEngine(AppEngine):
    """Hands out containers on lease: a file system of an image's, in which commands are run one after another."""

    kind: Literal["container"]
    cpus: float = Field(default=1, ge=0)
    backend: Literal["rootfs", "podman", "apptainer"] = "rootfs"
    """What runs them."""
    images: dict[str, str] = {}
    """Names of images, and what the backend takes for them: a folder or archive for `rootfs` (or `host`: this machine's
    /usr), a reference for the others. The name `*` is any other, which `{name}` stands for in its value."""
    any_image: bool = False
    """Whether clients may name images that aren't in `images`."""
    containers: int = Field(default=32, gt=0)
    """Leases of a replica at a time; who asks for more waits."""
    lease_s: float = Field(default=600, gt=0)
    """A lease whose client isn't heard of for so long ends."""
    timeout_s: float = Field(default=60, gt=0)
    """Seconds that a command may take, if its request doesn't say."""
    start_container_s: float = Field(default=300, gt=0)
    """Seconds that a container may take to start, its image's download included."""
    memory_mb: int = Field(default=2048, gt=0)
    """Memory of a container."""
    processes: int = Field(default=512, gt=0)
    """Processes and threads of a container at a time."""
    disk_mb: int = Field(default=4096, gt=0)
    """What a container may write, where the backend can limit it."""
    output_kb: int = Field(default=4096, gt=0)
    """Of a command's output; what is more is cut off in the middle."""
    network: bool = False
    """Whether containers reach the network."""
    mounts: dict[str, str] = {}
    """Folders of the host that each container sees, read-only, by their path in it."""
    environment: dict[str, Annotated[str, Field(coerce_numbers_to_str=True)]] = {}
    """Environment of all commands; nothing of the host's reaches them."""
    args: list[str] = []
    """More arguments of the backend's command that starts a container. No client can give any."""


ServiceEngine = SandboxEngine | ContainerEngine
"""The engines that serve no model."""
SERVICES = ("sandbox", "container")
"""Their kinds."""

EngineSpec = Annotated[
    VllmEngine | SglangEngine | SimulatedEngine | OpenAIEngine | Gateway | ServiceEngine,
    Field(discriminator="kind"),
]
"""All engines: the config group `engine`."""
