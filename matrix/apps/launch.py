"""What a replica runs: the processes of one engine, and how to tell whether it is well."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from matrix.models.source import ResolvedModel
from matrix.spec import EngineSpec, ModelSpec

HOST, PORT, GRPC_PORT = "{host}", "{port}", "{grpc_port}"
"""Arguments that a replica puts its own addresses in for."""
HEAD, HEAD_PORT = "{head}", "{head_port}"
"""The same for the address at which the nodes of a replica find each other."""
SECRETS = "{secrets}"
"""The same for the path of a file with `Launch.secrets` that only its user can read."""


@dataclass(frozen=True)
class Launch:
    """The processes of a replica.

    Attributes:
        title: What people call the engine.
        commands: One for each node of the replica; the first one's process is the server.
        environment: On top of the replica's own, for all of them.
        grpc: `own`: the server takes GRPC_PORT itself; `sidecar`: a process beside it does; None: no gRPC.
        secrets: Content of the file that SECRETS stands for.
        counts_tokens: Its figures show every token as it is made, so that one that makes none hangs.
    """

    title: str
    commands: list[list[str]]
    environment: dict[str, str] = field(repr=False)
    grpc: str | None = None
    secrets: str | None = field(default=None, repr=False)
    counts_tokens: bool = True


def flags(arguments: Mapping[str, Any]) -> list[str]:
    """Arguments by their own names as a command line: true is a bare flag, false its `--no-` form, null none at all."""
    command: list[str] = []
    for name, value in arguments.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            command.append(flag)
        elif value is False:
            command.append(flag.replace("--", "--no-", 1))
        elif isinstance(value, list):
            command += [flag, *(json.dumps(one) if isinstance(one, dict) else str(one) for one in value)]
        elif value is not None:
            command += [flag, json.dumps(value) if isinstance(value, dict) else str(value)]
    return command


def launch_of(
    engine: EngineSpec, model: ModelSpec, source: ResolvedModel | None, api_key: str, *, cpu: bool, nodes: int
) -> Launch:
    """How a replica of this engine is started.

    Args:
        engine: The engine.
        model: The model.
        source: Where its weights are; None for an engine that needs none.
        api_key: What its server asks for.
        cpu: Serve on the CPU.
        nodes: How many nodes the replica spans.
    """
    from matrix.apps import own, sglang, vllm

    makers: dict[str, Callable[..., Launch]] = {"vllm": vllm.launch, "sglang": sglang.launch}
    make = makers.get(engine.kind)
    if make is None:
        return own.launch(engine, model, api_key)
    assert source is not None  # noqa: S101 - the check sees to it that these engines have a model to load
    return make(engine, model, source, api_key, cpu=cpu, nodes=nodes)
