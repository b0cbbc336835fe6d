"""`engine.backend=podman`, rootless or not: https://docs.podman.io/en/v4.3/Commands.html."""

from __future__ import annotations

from pathlib import Path

from matrix.containers.named import NamedContainers
from matrix.containers.process import must, run
from matrix.containers.runtime import Command

_KEPT = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID")
"""Capabilities that package managers need inside, and that reach nothing outside."""
_WAIT = "while :; do sleep 86400; done"


class Podman(NamedContainers):
    """Images are what `podman run` takes.

    What else podman should do differently is in its own `containers.conf`, which `engine.env.CONTAINERS_CONF` may name.
    """

    program = "podman"
    package = "package podman"
    own_fault = 125

    def start_line(self, container: str, image: str, root: Path) -> list[str]:
        """See `NamedContainers`."""
        engine = self.engine
        line = ["podman", "run", "--detach", "--name", container, "--label", f"matrix={root}"]
        # By itself podman takes the proxies of the host's environment along.
        line += ["--http-proxy=false", "--log-driver", "none", "--security-opt", "no-new-privileges"]
        line += ["--cap-drop", "all", "--cap-add", ",".join(_KEPT)]
        line += ["--memory", f"{engine.memory_mb}m", "--pids-limit", str(engine.processes)]
        line += [] if engine.network else ["--network", "none"]
        for inside, source in engine.mounts.items():
            line += ["--mount", f"type=bind,source={source},destination={inside},readonly"]
        for key, value in engine.environment.items():
            line += ["--env", f"{key}={value}"]
        return [*line, *engine.args, "--entrypoint", "sh", image, "-c", _WAIT]

    def execute_line(self, container: str, command: Command) -> list[str]:
        """See `NamedContainers`."""
        line = ["podman", "exec", *(["--interactive"] if command.stdin else [])]
        line += ["--workdir", command.cwd] if command.cwd else []
        for key, value in command.env.items():
            line += ["--env", f"{key}={value}"]
        return [*line, container, *command.arguments]

    async def end_all(self, container: str) -> None:
        """See `NamedContainers`."""
        await must(["podman", "restart", "--time", "0", container], "a command that takes too long can't be ended")

    async def stop(self, containers: list[str]) -> None:
        """See `NamedContainers`."""
        if containers:
            line = ["podman", "rm", "--force", "--volumes", "--time", "0", "--ignore", *containers]
            await must(line, "a container can't be removed")

    async def runs(self, container: str) -> bool:
        """See `NamedContainers`."""
        told = await run(["podman", "inspect", "--format", "{{.State.Running}}", container], limit=4096, apart=True)
        return told.output.strip() == b"true"

    async def all_of(self, root: Path) -> list[str]:
        """See `NamedContainers`."""
        line = ["podman", "ps", "--all", "--filter", f"label=matrix={root}", "--format", "{{.Names}}"]
        return (await must(line, "podman can't tell its containers")).split()
