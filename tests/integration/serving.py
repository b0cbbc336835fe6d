"""A process that plays a run with a deployed app: its cluster, Serve, and an engine that is `tests/fake_engine.py`.

Prints the cluster's address and its token, each on a line. A line of input
removes the app; the end of the input ends the cluster.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from matrix.apps import deploy
from matrix.apps.launch import HOST, PORT, Launch
from matrix.cluster.ray import connect
from matrix.compose import compose_spec
from matrix.models.source import ResolvedModel
from matrix.spec import EngineSpec, ModelSpec

ENGINE = Path(__file__).parent.parent / "fake_engine.py"


def main(log_dir: str) -> None:
    """Serve the app `played-1` with the model `played` on two replicas."""
    # All but the engine itself is the real thing: the fake has vLLM's place on the command line of the guard.
    deploy.launch_of = played
    cluster = connect(compose_spec(["tracker=none"]).cluster)
    try:
        import ray

        deploy.start_serve()
        app = start("played", 2, log_dir)
        deploy.wait_until_healthy([app], lambda _: None, lambda _: None)
        print(ray.get_runtime_context().gcs_address, os.environ["RAY_AUTH_TOKEN"], sep="\n", flush=True)
        if sys.stdin.readline():
            deploy.remove(app.name, patient=False)
            print("removed", flush=True)
        sys.stdin.read()
    finally:
        cluster.stop()


def start(model: str, replicas: int, log_dir: str) -> deploy.App:
    """Deploy an app."""
    spec = compose_spec([f"engine.replicas={replicas}", "engine.cpus=0.1", f"model.name={model}", "tracker=none"])
    source = ResolvedModel(model, None, None, model)
    app = deploy.App(f"{model}-1", spec.engine, spec.model, source, True, [{"CPU": 0.1}])
    deploy.deploy(app, Path(log_dir), kept=False)
    return app


def played(engine: EngineSpec, model: ModelSpec, source: object, api_key: str, **_: object) -> Launch:
    """The fake in vLLM's place."""
    command = [sys.executable, str(ENGINE), "--model", model.name, "--host", HOST, "--port", PORT]
    return Launch("the fake", [command], {"VLLM_API_KEY": api_key, "MATRIX_API_KEY": api_key})


if __name__ == "__main__":
    main(sys.argv[1])
