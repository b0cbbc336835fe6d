"""Configs to check, as plain data: the default one with changes."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

from matrix.check import check
from matrix.compose import compose_spec

# Not `executor=slurm`, which would ask the Slurm of the machine that the tests run on.
SLURM = {"kind": "slurm", "executor": "local", "workers": 1, "cpus_per_node": 64, "gpus_per_node": 8}
MODEL = {"name": "m", "source": "org/name", "parameters_b": 8, "context_length": 8192, "kv_bytes_per_token": 131072}
API = {"name": "api"}


@cache
def _default() -> dict[str, Any]:
    return compose_spec(["tracker=none", "engine=openai", "engine.api_key_env=null"]).model_dump()


def problems(**sections: Any) -> list[str]:
    """What is wrong with a config whose sections are these, else the default ones."""
    return [str(problem) for problem in check(config(**sections))[1]]


def config(**sections: Any) -> dict[str, Any]:
    """A config whose sections are these, else the default ones."""
    return {**copy.deepcopy(_default()), **sections}


def on_gpus(engine: dict[str, Any] | None = None, model: dict[str, Any] | None = None, **cluster: Any) -> list[str]:
    """The same for vLLM on eight GPUs of 80 GB."""
    served = {"kind": "vllm", **(engine or {})}
    return problems(cluster=SLURM | cluster, engine=served, model=MODEL | (model or {}))
