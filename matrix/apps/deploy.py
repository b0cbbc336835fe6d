"""Put apps on the connected Ray cluster, wait until they can be talked to, and take them away."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matrix.apps.directory import DEPLOYMENT, AppRecord, directory
from matrix.apps.launch import launch_of
from matrix.apps.replica import Replica
from matrix.apps.status import AppStatus, look
from matrix.errors import AppError
from matrix.models.source import ResolvedModel
from matrix.spec import EngineSpec, ModelSpec, ServiceEngine
from matrix.spec.redact import redact

_POLL_S = 0.2
_HEALTH_PERIOD_S = 2.0
_PLACED_S = 60.0
_UP = ("healthy", "idle")
_LOSSES = 3
"""Times that an app is deployed anew whose first replica was lost."""
_END_S = 15.0
"""Seconds for the processes of an engine to end, once it is drained."""
NOT_IN_VERSION = {"replicas", "start_timeout_s"}
"""What of an engine can change without new replicas."""


@dataclass(frozen=True)
class App:
    """An app as it should be.

    Attributes:
        name: What it is known by.
        engine: What serves the model.
        model: The model.
        source: Where its weights are; None for an engine that needs none.
        cpu: Serve on the CPU.
        bundles: Resources of a replica, one bundle for each node that it spans.
    """

    name: str
    engine: EngineSpec
    model: ModelSpec
    source: ResolvedModel | None
    cpu: bool
    bundles: list[dict[str, float]]

    def renamed(self, name: str) -> App:
        """The same app under another name."""
        return replace(self, name=name)

    @property
    def version(self) -> str:
        """Fingerprint of all that a replica of it depends on."""
        parts = [
            self.engine.model_dump(mode="json", exclude=NOT_IN_VERSION),
            self.model.model_dump(mode="json", exclude={"card", "price", "parameters_b", "kv_bytes_per_token"}),
            None if self.source is None else [self.source.path, self.source.revision, self.source.checksum],
            self.cpu,
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def start_serve() -> None:
    """Start Ray Serve's control plane without its proxies: our clients go straight to the replicas (D1)."""
    from ray import serve

    _quiet()
    serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING", "enable_access_log": False})


def _quiet() -> None:
    """Serve tells what it does on the terminal, which is ours; what goes wrong comes as an error."""
    logging.getLogger("ray.serve").setLevel(logging.ERROR)


def deploy(app: App, log_dir: Path, *, kept: bool, surge: bool = True) -> None:
    """Ask Ray Serve for an app, or for a change of the one of this name; returns at once.

    Args:
        app: The app.
        log_dir: Folder for the engines' logs.
        kept: It stays when this process ends.
        surge: New replicas come up before the old ones go; without, it needs no more room than it has.
    """
    import ray
    from ray import serve

    known = next((record for record in ray.get(directory().apps.remote()) if record.name == app.name), None)
    ray.get(directory().register.remote(_record(app, kept=kept)))
    if known is not None and known.version == app.version and not has_failed(app):
        # Only how many replicas there may be can differ, which the directory looks after.
        return
    engine = app.engine
    api_key = ray.get(directory().api_key.remote())
    first = app.bundles[0]
    options: dict[str, Any] = {
        "ray_actor_options": {
            "num_cpus": first.get("CPU", 0),
            "num_gpus": first.get("GPU", 0),
            "resources": {name: amount for name, amount in first.items() if name not in ("CPU", "GPU")},
        }
    }
    if len(app.bundles) > 1:
        options |= {"placement_group_bundles": app.bundles, "placement_group_strategy": "STRICT_SPREAD"}
    deployment = serve.deployment(
        Replica,
        name=DEPLOYMENT,
        num_replicas=max(engine.replicas.min, 1),
        max_constructor_retry_count=1,
        max_surge_percent=100 if surge else 0,
        health_check_period_s=_HEALTH_PERIOD_S,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=engine.drain_timeout_s + _END_S,
        **options,
    )
    launch = launch_of(engine, app.model, app.source, api_key, cpu=app.cpu, nodes=len(app.bundles))
    limits = {"start": engine.start_timeout_s, "drain": engine.drain_timeout_s, "hang": engine.hang_timeout_s}
    bound = deployment.bind(app.name, app.version, launch, str(log_dir), limits)
    target = serve.RunTarget(bound, name=app.name, route_prefix=None, external_scaler_enabled=True)
    serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)


def wait_until_healthy(
    apps: Sequence[App], on_status: Callable[[list[AppStatus]], None], again: Callable[[App], None]
) -> None:
    """Wait until all replicas of the apps answer.

    Args:
        apps: The apps; each has its engine's `start_timeout_s`.
        on_status: Told what they wait for, again and again.
        again: Deploys an app anew that Ray Serve has given up since its first replica was lost with its node.

    Raises:
        AppError: One failed or took too long, with the engine's own last lines.
    """
    began = time.monotonic()
    lost = Counter[str]()
    while True:
        statuses = [look(app.name, app.version, app.engine.replicas) for app in apps]
        on_status(statuses)
        for app, status in zip(apps, statuses, strict=True):
            if status.phase == "failed" and status.was_lost and lost[app.name] < _LOSSES:
                lost[app.name] += 1
                again(app)
            elif status.phase == "failed":
                raise AppError(f"app {app.name} failed: {status.detail}")
            late = time.monotonic() - began > app.engine.start_timeout_s
            if late and status.phase not in _UP:
                what = f"is not healthy after {app.engine.start_timeout_s:.0f} s ({status.phase})"
                raise AppError(f"app {app.name} {what}: {status.detail}")
        if all(status.phase in _UP for status in statuses):
            return
        time.sleep(_POLL_S)


def wait_until_placed(app: App, on_status: Callable[[list[AppStatus]], None]) -> None:
    """Wait until the app has its resources, or it is plain that it doesn't get them soon."""
    began = time.monotonic()
    while time.monotonic() - began < _PLACED_S:
        status = look(app.name, app.version, app.engine.replicas)
        on_status([status])
        if status.phase not in ("pending", "scheduling"):
            return
        time.sleep(_POLL_S)


def is_healthy(name: str) -> bool:
    """Whether Ray Serve holds the app for running."""
    from ray import serve

    status = serve.status().applications.get(name)
    return status is not None and status.status == "RUNNING"


def has_failed(app: App) -> bool:
    """Whether Ray Serve has given the app up, so that only another deploy brings it back."""
    return look(app.name, app.version, app.engine.replicas).phase == "failed"


def remove(name: str, *, patient: bool) -> None:
    """Remove an app and its replicas; returns when they are gone.

    Args:
        name: The app.
        patient: Let them finish what they are working on.
    """
    import ray
    from ray import serve

    _quiet()
    ray.get(directory().forget.remote(name, patient=patient))
    serve.delete(name)
    ray.get(directory().forget.remote(name, patient=False))


def spec_of(app: App) -> dict[str, Any]:
    """Its `engine` and `model`, secrets hidden."""
    spec = {"engine": app.engine.model_dump(mode="json"), "model": app.model.model_dump(mode="json")}
    return dict(redact(spec))


def _record(app: App, *, kept: bool) -> AppRecord:
    model, engine = app.model, app.engine
    # Those of a container engine are words of another command's.
    given = {} if isinstance(engine, ServiceEngine) else getattr(engine, "args", {})
    args = {
        "model": model.source or model.name,
        "served_model_name": model.name,
        "replicas": engine.replicas.model_dump(),
        "max_model_len": model.context_length,
        "tensor_parallel_size": model.tensor_parallel,
        "pipeline_parallel_size": model.pipeline_parallel,
        **redact(model.args | given),
    }
    return AppRecord(app.name, model.name, engine.kind, app.version, engine.replicas, args, spec_of(app), kept)
