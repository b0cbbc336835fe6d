"""SGLang's command line. It has the same contract as vLLM's, and may live in a Python environment of its own."""

from __future__ import annotations

import json
import sys
from typing import Any

from matrix.apps.launch import HEAD, HEAD_PORT, HOST, PORT, SECRETS, Launch, flags
from matrix.models.source import ResolvedModel
from matrix.spec import ModelSpec, SglangEngine

_PARSERS = {
    "llama3_json": "llama3",
    # Both are JSON in <tool_call> tags.
    "hermes": "qwen25",
    "llama4_pythonic": "pythonic",
    "openai": "gpt-oss",
    "openai_gptoss": "gpt-oss",
    "deepseek_v3": "deepseekv3",
    "deepseek_r1": "deepseek-r1",
}
"""SGLang's names of parsers that vLLM, whose names the specs have, calls otherwise (SGLang 0.5: `--help`)."""


def launch(
    engine: SglangEngine, model: ModelSpec, source: ResolvedModel, api_key: str, *, cpu: bool, nodes: int
) -> Launch:
    """`python -m sglang.launch_server` on each node of the replica; the key goes by a file, not by the command line."""
    arguments: dict[str, Any] = {
        "model_path": source.path,
        "served_model_name": model.name,
        "context_length": model.context_length,
        "revision": source.revision,
        "tp_size": model.tensor_parallel,
        "pp_size": model.pipeline_parallel,
        "reasoning_parser": _PARSERS.get(model.reasoning_parser or "", model.reasoning_parser),
        "tool_call_parser": _PARSERS.get(model.tool_parser or "", model.tool_parser),
        "device": "cpu" if cpu else None,
        "enable_metrics": True,
        "config": SECRETS,
    }
    # Not `model.args`, which are vLLM's. SGLang has no `--no-` flags: what is false is left out.
    for name, value in engine.args.items():
        arguments[name.replace("-", "_")] = None if value is False else value
    base = [engine.python or sys.executable, "-m", "sglang.launch_server", *flags(arguments)]
    commands = [[*base, "--host", HOST, "--port", PORT]]
    if nodes > 1:
        spans = ["--nnodes", str(nodes), "--dist-init-addr", f"{HEAD}:{HEAD_PORT}"]
        commands = [[*commands[0], *spans, "--node-rank", str(rank)] for rank in range(nodes)]
    # For the gRPC server beside it, and for who looks at its figures; SGLang itself doesn't know it.
    environment = {"MATRIX_API_KEY": api_key, "PYTHONUNBUFFERED": "1"} | engine.env
    # JSON is YAML, which SGLang's --config reads.
    secrets = json.dumps({"api-key": api_key})
    return Launch("SGLang", commands, environment, "sidecar" if engine.grpc else None, secrets)
