"""Environments of their own for LangGraph and fair-matrix, made where they aren't there (a minute each)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

LANGGRAPH = ("langgraph==1.2.24", "langgraph-checkpoint-sqlite", "orjson", "uvloop")
# What the agents of 0.2.6 import, as its metadata asks for it. Ray is the newest that they run with: from 2.56 on
# `ray.put` has no `_owner`, and every row ends with an error after its first turn.
FAIR_MATRIX = (
    *("ray[default,serve]>=2.48,<2.56", "hydra-core", "zstandard", "langgraph", "datasets", "aiohttp~=3.12", "fire"),
    *("grpcio==1.70.0", "httpx~=0.28", "jinja2", "openai~=1.90", "portalocker", "protobuf<6", "psutil", "pyyaml"),
    *("requests~=2.32", "tqdm", "submitit", "jsonlines", "iopath", "boto3"),
)


def langgraph_python() -> str:
    """Python with LangGraph."""
    return _environment("langgraph", [LANGGRAPH])


def fair_matrix_python() -> str:
    """Python with fair-matrix 0.2.6 and its own Ray."""
    return _environment("fair-matrix-agents", [("--no-deps", "fair-matrix==0.2.6"), FAIR_MATRIX])


def _environment(name: str, installs: list[tuple[str, ...]]) -> str:
    folder = ROOT / ".cache" / name
    python = folder / "bin" / "python"
    ready = folder / "ready"
    wanted = repr(installs)
    if not ready.exists() or ready.read_text() != wanted:
        print(f"Making {folder} ...", file=sys.stderr)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(folder)],
            *([*pip, *packages] for packages in installs),
        ):
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
        ready.write_text(wanted)
    return str(python)
