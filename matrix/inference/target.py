"""What `app=` means: URLs of servers, the model to ask them for, and their key."""

from __future__ import annotations

import asyncio
import os
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from matrix.api import Cli
from matrix.apps.lookup import wait_for_urls
from matrix.errors import ConfigError, Problem, RequestError
from matrix.spec import LocalCluster, OpenAIEngine, RunSpec

_HOST_AND_PORT = re.compile(r"(?:[\w.-]+|\[[0-9A-Fa-f:.]+\]):\d+")
_GRPC = "grpc://"
_LIKE_GRPC = f"{_GRPC}HOST:PORT"
_SHOWN = 20


@dataclass(frozen=True)
class Target:
    """Who is asked.

    Attributes:
        urls: Base URLs of the servers, each up to and including `/v1`, or `grpc://HOST:PORT`.
        model: What they call the model.
        api_key: Of an app: what its servers ask for.
        executes: It runs programs, and serves no model.
    """

    urls: list[str]
    model: str
    api_key: str | None = None
    executes: bool = False


def is_url(app: str) -> bool:
    """Whether an app is named by its URL."""
    return "://" in app


def check_app(app: str) -> list[Problem]:
    """What can be said of it without asking anybody."""
    if is_url(app) and not app.startswith(("http://", "https://", _GRPC)):
        return [Problem("app", app, "neither an HTTP URL nor one for gRPC", f"app=http://HOST:PORT/v1 or {_LIKE_GRPC}")]
    if app.startswith(_GRPC) and not _HOST_AND_PORT.fullmatch(app.removeprefix(_GRPC).rstrip("/")):
        return [Problem("app", app, "not a host and port", f"app={_LIKE_GRPC}")]
    if is_url(app) and app.rstrip("/").endswith("/completions"):
        base = app.rstrip("/").removesuffix("/completions").removesuffix("/chat")
        return [Problem("app", app, "not a base URL", f"app={base}")]
    if not is_url(app) and _HOST_AND_PORT.fullmatch(app.partition("/")[0]):
        hint = f"app=http://{app}, or app={_GRPC}{app} for gRPC"
        return [Problem("app", app, "neither a URL nor a name of an app", hint)]
    return []


def find_target(app: str, spec: RunSpec, model: str | None) -> Target:
    """Ask the server, or the cluster on which the app is.

    Args:
        app: A URL or a name.
        spec: With the engine's key and the cluster.
        model: What the user calls the model; None: whatever it is that is served.

    Raises:
        ConfigError: The server doesn't answer, or there is no telling which model is meant.
        ClusterError: The cluster can't be reached.
        AppError: It has no such app, or the app has no replica that is ready.
    """
    return _of_server(_with_path(app), spec, model) if is_url(app) else _of_cluster(app, spec, model)


def _of_server(url: str, spec: RunSpec, model: str | None) -> Target:
    # The client takes longer to import than `--help` may take.
    from matrix.client.models import served_models

    variable = spec.engine.api_key_env if isinstance(spec.engine, OpenAIEngine) else None
    try:
        models = asyncio.run(served_models(url, os.environ[variable] if variable else None))
    except RequestError as error:
        denied = error.kind in {"http_401", "http_403"}
        hint = "engine.api_key_env=NAME: the environment variable that holds the key" if denied else ""
        raise _refused(Problem("app", url, str(error).removeprefix(f"{url}: "), hint)) from error
    if model is not None:
        return Target([url], model)
    if models is None:
        message = "has to be given, since the server doesn't say which models it has"
        raise _refused(Problem("model.name", None, message, "model.name=NAME"))
    if len(models) != 1:
        listed = ", ".join(models[:_SHOWN]) + (", ..." if len(models) > _SHOWN else "")
        message = f"has to be given, since the server has {len(models)} models"
        raise _refused(Problem("model.name", None, message, f"one of: {listed}" if models else "load one"))
    return Target([url], models[0])


def _of_cluster(app: str, spec: RunSpec, model: str | None) -> Target:
    cluster = spec.cluster
    if isinstance(cluster, LocalCluster):
        hint = "cluster=attach cluster.address=IP:PORT, or app=http://HOST:PORT/v1"
        message = f"the app {app} is looked for on a cluster that is there already"
        raise _refused(Problem("cluster", cluster.kind, message, hint))
    with Cli.of(cluster) as cli:
        found = cli.get_app_metadata(app)
        urls: list[str] = wait_for_urls(found["name"], cluster.start_timeout_s)
    return Target(urls, model or found["model_name"], found["api_key"], found["app_type"] == "code")


def _with_path(url: str) -> str:
    """Servers have their API below /v1, and who gives only a host means that."""
    url = url.rstrip("/")
    return url if urlsplit(url).path or url.startswith(_GRPC) else f"{url}/v1"


def _refused(problem: Problem) -> ConfigError:
    return ConfigError([problem], "Nothing was started.")
