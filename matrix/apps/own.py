"""Servers of our own as apps: the simulated engine, and gateways to other vendors' APIs."""

from __future__ import annotations

import json
import sys

from matrix.apps.launch import GRPC_PORT, HOST, PORT, Launch
from matrix.spec import EngineSpec, ModelSpec

_TITLES = {"simulated": "the simulated engine"}


def launch(engine: EngineSpec, model: ModelSpec, api_key: str) -> Launch:
    """`python -m matrix.serving` with this engine; credentials are read there, by the names in the spec."""
    command = [sys.executable, "-m", "matrix.serving", "--host", HOST, "--port", PORT]
    if engine.grpc:
        command += ["--grpc-port", GRPC_PORT]
    spec = {"engine": engine.model_dump(mode="json"), "model": model.model_dump(mode="json")}
    environment = {"MATRIX_SERVING": json.dumps(spec), "MATRIX_API_KEY": api_key, "PYTHONUNBUFFERED": "1"}
    title = _TITLES.get(engine.kind, f"the gateway to {engine.kind}")
    grpc = "own" if engine.grpc else None
    # They count a request's tokens at its end, and have limits of their own for how long it may take.
    return Launch(title, [command], environment | engine.env, grpc, counts_tokens=False)
