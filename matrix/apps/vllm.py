"""vLLM's command line.

It is vLLM's stable face; the place of its Python server moves with every version, and a crash of a process takes
nothing of Ray down with it. Nodes of one replica find each other by vLLM's own multi-node arguments.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from matrix.apps.launch import HEAD, HEAD_PORT, HOST, PORT, Launch, flags
from matrix.models.source import ResolvedModel
from matrix.spec import ModelSpec, VllmEngine


def launch(
    engine: VllmEngine, model: ModelSpec, source: ResolvedModel, api_key: str, *, cpu: bool, nodes: int
) -> Launch:
    """`vllm serve` on each node of the replica."""
    arguments = flags(serve_arguments(model, engine, source, cpu=cpu, nodes=nodes))
    server = [sys.executable, "-m", *_program(source.path), *arguments, "--host", HOST, "--port", PORT]
    commands = [server]
    if nodes > 1:
        spans = ["--nnodes", str(nodes), "--master-addr", HEAD, "--master-port", HEAD_PORT]
        spans += ["--distributed-executor-backend", "mp"]
        commands = [[*server, *spans, "--node-rank", "0"]]
        headless = [sys.executable, "-m", "matrix.apps.vllm_serve", "serve", source.path, *arguments, *spans]
        commands += [[*headless, "--headless", "--node-rank", str(rank)] for rank in range(1, nodes)]
    environment = engine_environment(engine, api_key, cpu=cpu)
    return Launch("vLLM", commands, environment, "sidecar" if engine.grpc else None)


def serve_arguments(
    model: ModelSpec, engine: VllmEngine, source: ResolvedModel, *, cpu: bool, nodes: int = 1
) -> dict[str, Any]:
    """The arguments of `vllm serve` by their names, all but addresses.

    Args:
        model: The model.
        engine: The engine.
        source: Folder or hub id of the weights.
        cpu: Serve on the CPU.
        nodes: How many nodes the replica spans.
    """
    arguments: dict[str, Any] = {
        "served_model_name": model.name,
        "max_model_len": model.context_length,
        # Only a hub id has a revision that the engine could ask for.
        "revision": None if Path(source.path).is_dir() else source.revision,
        "tensor_parallel_size": model.tensor_parallel,
        "pipeline_parallel_size": model.pipeline_parallel,
        "reasoning_parser": model.reasoning_parser,
        "tool_call_parser": model.tool_parser,
        "enable_auto_tool_choice": True if model.tool_parser else None,
        # Compiling takes minutes on the CPU, and pays only for long runs there.
        "enforce_eager": True if cpu and nodes == 1 else None,
        # Pipeline stages of the CPU build work only after a warm-up, which it leaves out without compilation (0.32).
        "compilation_config": {"mode": 2, "backend": "eager"} if cpu and nodes > 1 else None,
        "disable_uvicorn_access_log": True,
        "middleware": ["matrix.apps.vllm_lock.Lock"],
    }
    for name, value in (model.args | engine.args).items():
        arguments[name.replace("-", "_")] = value
    return arguments


def engine_environment(engine: VllmEngine, api_key: str, *, cpu: bool) -> dict[str, str]:
    """What the engine process gets in its environment on top of the replica's own."""
    environment = {
        "VLLM_API_KEY": api_key,
        "MATRIX_API_KEY": api_key,
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "PYTHONUNBUFFERED": "1",
    }
    if cpu:
        # vLLM keeps a core free for its server; on a laptop that is half of the speed (docs/benchmarks.md).
        environment |= {"VLLM_CPU_KVCACHE_SPACE": f"{engine.kv_cache_gb:g}", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}
    # For gated models: the cluster may have been started before it was set.
    environment |= {name: os.environ[name] for name in ("HF_TOKEN",) if name in os.environ}
    return environment | engine.env


def _program(path: str) -> list[str]:
    """The entry point: vLLM's CPU build has another distribution name, which its own `vllm serve` doesn't know."""
    if "vllm" in {distribution.name for distribution in distributions()}:
        return ["vllm.entrypoints.cli.main", "serve", path]
    return ["vllm.entrypoints.openai.api_server", "--model", path]
