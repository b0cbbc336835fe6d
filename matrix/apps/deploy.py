"""Deploy an engine on the connected Ray cluster, and wait until its replicas can be talked to."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from matrix.apps.directory import AppRecord, directory
from matrix.apps.vllm import VllmReplica, engine_environment, serve_command
from matrix.errors import AppError
from matrix.models.source import ResolvedModel
from matrix.spec import ModelSpec, VllmEngine
from matrix.spec.redact import redact

_POLL_S = 0.25
_DEPLOYMENT = "engine"


@dataclass(frozen=True)
class App:
    """A deployed engine.

    Attributes:
        name: Name of the Serve application.
        replicas: How many there should be.
        api_key: What its servers ask for.
    """

    name: str
    replicas: int
    api_key: str


def start_serve() -> None:
    """Start Ray Serve's control plane without its proxies: our clients go straight to the replicas (D1)."""
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING", "enable_access_log": False})


def deploy(app: App, model: ModelSpec, engine: VllmEngine, source: ResolvedModel, log_dir: Path, *, cpu: bool) -> None:
    """Ask Ray Serve for the engine's replicas; returns at once.

    Args:
        app: What the deployed app will be known by.
        model: What is served.
        engine: How it is served.
        source: Where the weights are.
        log_dir: Folder for the engines' logs.
        cpu: Serve on the CPU.
    """
    import ray
    from ray import serve

    ray.get(directory().register.remote(_record(app, model, engine)))
    # Only a hub id has a revision that the engine could ask for.
    revision = None if Path(source.path).is_dir() else source.revision
    gpus = model.tensor_parallel * model.pipeline_parallel
    options: dict[str, object] = (
        {"num_cpus": engine.cpus} if cpu else {"num_cpus": engine.cpus * gpus, "num_gpus": gpus}
    )
    deployment = serve.deployment(
        VllmReplica,
        name=_DEPLOYMENT,
        num_replicas=app.replicas,
        ray_actor_options=options,
        max_constructor_retry_count=1,
        health_check_period_s=5,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=10,
    )
    application = deployment.bind(
        app.name,
        serve_command(model, engine, source.path, revision, cpu=cpu),
        engine_environment(engine, app.api_key, cpu=cpu),
        str(log_dir),
        engine.start_timeout_s,
    )
    target = serve.RunTarget(application, name=app.name, route_prefix=None)
    serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)


def wait_until_healthy(app: App, timeout_s: float, on_detail: Callable[[str], None]) -> list[str]:
    """Wait until all replicas of the app answer.

    Args:
        app: The app.
        timeout_s: Seconds until it is given up.
        on_detail: Told what the app waits for, again and again.

    Returns:
        The replicas' base URLs.

    Raises:
        AppError: The app failed or took too long, with the engine's own last lines.
    """
    from ray import serve

    deadline = time.monotonic() + timeout_s
    while True:
        found = urls(app)
        if len(found) == app.replicas:
            return found
        status = serve.status().applications.get(app.name)
        details = _details(app.name)
        if status is not None and status.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise AppError(f"app {app.name} failed: " + (details or status.message))
        if time.monotonic() > deadline:
            raise AppError(f"app {app.name} is not healthy after {timeout_s:.0f} s: {details or _placement(status)}")
        on_detail(details or _placement(status))
        time.sleep(_POLL_S)


def urls(app: App) -> list[str]:
    """Base URLs of the replicas that are ready."""
    import ray

    return [state.url for state in ray.get(directory().replicas.remote(app.name)) if state.url]


def is_healthy(app: App) -> bool:
    """Whether Ray Serve holds the app for running."""
    from ray import serve

    status = serve.status().applications.get(app.name)
    return status is not None and status.status == "RUNNING"


def remove(app: App) -> None:
    """Remove the app and its replicas; returns when they are gone."""
    import ray
    from ray import serve

    serve.delete(app.name)
    ray.get(directory().forget.remote(app.name))


def _record(app: App, model: ModelSpec, engine: VllmEngine) -> AppRecord:
    args = {
        "model": model.source,
        "served_model_name": model.name,
        "replicas": app.replicas,
        "max_model_len": model.context_length,
        "tensor_parallel_size": model.tensor_parallel,
        "pipeline_parallel_size": model.pipeline_parallel,
        **redact(model.args | engine.args),
    }
    return AppRecord(app.name, model.name, _DEPLOYMENT, app.api_key, args)


def _details(name: str) -> str:
    import ray

    return "; ".join(state.detail for state in ray.get(directory().replicas.remote(name)) if not state.url)


def _placement(status: object) -> str:
    messages = [deployment.message for deployment in getattr(status, "deployments", {}).values()]
    return "; ".join(message for message in messages if message) or "waiting for Ray Serve to place the replica"
