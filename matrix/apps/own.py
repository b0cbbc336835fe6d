"""Servers of our own as apps: the simulated engine, gateways to other vendors' APIs, sandboxes and containers."""

from __future__ import annotations

import json
import os
import sys

from matrix.apps.launch import GRPC_PORT, HOST, PORT, Launch
from matrix.spec import EngineSpec, ModelSpec
from matrix.spec.engine import AwsEngine

_TITLES = {"simulated": "the simulated engine", "sandbox": "the sandbox", "container": "the containers"}


def launch(engine: EngineSpec, model: ModelSpec, api_key: str) -> Launch:
    """`python -m matrix.serving` with this engine; credentials are read there, by the names in the spec."""
    command = [sys.executable, "-m", "matrix.serving", "--host", HOST, "--port", PORT]
    if engine.grpc:
        command += ["--grpc-port", GRPC_PORT]
    spec = {"engine": engine.model_dump(mode="json"), "model": model.model_dump(mode="json")}
    environment = {"MATRIX_SERVING": json.dumps(spec), "MATRIX_API_KEY": api_key, "PYTHONUNBUFFERED": "1"}
    # From here, since the cluster may have been started before they were set; never written anywhere.
    environment |= {name: os.environ[name] for name in _credentials(engine) if name in os.environ}
    title = _TITLES.get(engine.kind, f"the gateway to {engine.kind}")
    grpc = "own" if engine.grpc else None
    # They count a request's tokens at its end, and have limits of their own for how long it may take.
    return Launch(title, [command], environment | engine.env, grpc, counts_tokens=False)


def _credentials(engine: EngineSpec) -> list[str]:
    """Names of the environment variables that hold what the vendor wants to see."""
    if isinstance(engine, AwsEngine):
        return ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_BEARER_TOKEN_BEDROCK"]
    names = getattr(engine, "api_key_env", None) or []
    return [names] if isinstance(names, str) else list(names)
