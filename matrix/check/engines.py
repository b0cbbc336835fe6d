"""Rules on an engine and its model: installed parts, weights, credentials, files, arguments."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from matrix.check.arguments import check_arguments
from matrix.check.problems import is_installed, not_installed
from matrix.errors import Problem
from matrix.models.source import check_source
from matrix.spec import (
    AppSpec,
    AzureEngine,
    ContainerEngine,
    EngineSpec,
    Gateway,
    GeminiEngine,
    ModelSpec,
    OpenAIEngine,
    SandboxEngine,
    SglangEngine,
    SimulatedEngine,
    VllmEngine,
)
from matrix.spec.engine import AwsEngine

_NAME = "[A-Za-z_][A-Za-z0-9._-]*"
_RESERVED = ("v1", "health", "metrics", "control", "matrix.door")
"""Paths of the front door, and its own name in Ray Serve."""

_SDK = {
    "azure": ("openai", "OpenAI's SDK"),
    "anthropic": ("anthropic", "Anthropic's SDK"),
    "llama_api": ("llama_api_client", "Meta's SDK (llama-api-client)"),
    "gemini": ("google.genai", "Google's SDK (google-genai)"),
    "bedrock": ("boto3", "AWS' SDK (boto3)"),
    "sagemaker": ("boto3", "AWS' SDK (boto3)"),
}


def check_engine(prefix: str, engine: EngineSpec, model: ModelSpec) -> list[Problem]:
    """Everything about an engine that needs no look at the cluster.

    Args:
        prefix: What stands before `engine` and `model` in keys: empty, or `apps.NAME.`.
        engine: The engine.
        model: Its model.
    """
    problems = _installed(prefix, engine)
    match engine:
        case VllmEngine() | SglangEngine():
            problems += _model(prefix, engine, model)
            problems += check_arguments(prefix, engine, model)
        case SimulatedEngine():
            if engine.outputs and not Path(engine.outputs).expanduser().is_file():
                key = f"{prefix}engine.outputs"
                problems.append(Problem(key, engine.outputs, "no such file", "a JSONL file of answers, or null"))
        case SandboxEngine() | ContainerEngine():
            from matrix.check.services import check_service

            problems += check_service(prefix, engine)
        case OpenAIEngine():
            problems += _keys(prefix, engine.api_key_env, "null if the server asks for none")
        case _:
            problems += _credentials(prefix, engine)
    return problems


def check_app_names(engine: EngineSpec, model: ModelSpec, apps: Mapping[str, AppSpec]) -> list[Problem]:
    """Names of apps are parts of URLs and file names, and each is taken once."""
    problems = []
    if model.name in _RESERVED:
        problems.append(Problem("model.name", model.name, "is a path of the front door", "another name"))
    for name in apps:
        if name in _RESERVED:
            problems.append(Problem(f"apps.{name}", None, "is a path of the front door", "another name"))
        elif not re.fullmatch(_NAME, name):
            message = "an app's name is made of letters, digits, '-', '_' and '.', and begins with a letter"
            problems.append(Problem(f"apps.{name}", None, message))
        elif name == model.name and not isinstance(engine, OpenAIEngine | Gateway):
            message = "is also the name of the app that engine and model describe"
            problems.append(Problem(f"apps.{name}", None, message, f"another name: apps.{name}-2, or model.name=..."))
    return problems


def _installed(prefix: str, engine: EngineSpec) -> list[Problem]:
    """The packages that the engine itself and the app around it are made of."""
    key, kind, instead = f"{prefix}engine.kind", engine.kind, "engine=openai for a server that is already there"
    problems = []
    if isinstance(engine, VllmEngine) and not is_installed("vllm"):
        problems.append(not_installed(key, kind, "vLLM", "matrix-llm[vllm]", instead))
    if isinstance(engine, SglangEngine):
        if engine.python is None and not is_installed("sglang"):
            own = f"{prefix}engine.python=PATH/bin/python of an environment that has it"
            problems.append(not_installed(key, kind, "SGLang", "matrix-llm[sglang]", own))
        if engine.python is not None and not os.access(Path(engine.python).expanduser(), os.X_OK):
            hint = "the interpreter of the environment that SGLang is installed in"
            problems.append(Problem(f"{prefix}engine.python", engine.python, "no such program", hint))
    if engine.kind in _SDK and not is_installed(_SDK[engine.kind][0]):
        problems.append(not_installed(key, kind, _SDK[engine.kind][1], "matrix-llm[gateways]", "another engine"))
    direct = isinstance(engine, OpenAIEngine | Gateway) and not prefix
    if not direct and not is_installed("ray"):
        problems.append(not_installed(key, kind, "Ray", "matrix-llm[serving]", instead))
    ours = not isinstance(engine, VllmEngine | SglangEngine) and not (isinstance(engine, OpenAIEngine) and not prefix)
    if ours and not (is_installed("uvicorn") and is_installed("httptools")):
        package = "matrix-llm[gateways]" if direct else "matrix-llm[serving]"
        problems.append(not_installed(key, kind, "uvicorn with httptools", package, instead))
    return problems


def _model(prefix: str, engine: VllmEngine | SglangEngine, model: ModelSpec) -> list[Problem]:
    """What there has to be known of a model before an engine can load it."""
    ways = {
        "source": "org/name on the hub, a folder, s3://BUCKET/PREFIX or package:NAME",
        "parameters_b": "all parameters in billions, as its card says",
        "context_length": "tokens of prompt and answer together",
    }
    problems = [
        Problem(
            f"{prefix}model.{field}",
            None,
            f"is missing, and {engine.kind} loads the model itself",
            f"{prefix}model.{field}=VALUE: {what}; or a model of conf/model that is no api",
        )
        for field, what in ways.items()
        if getattr(model, field) is None
    ]
    message = model.source and check_source(model.source)
    if message:
        problems.append(Problem(f"{prefix}model.source", model.source, message))
    return problems


def _keys(prefix: str, names: str | list[str] | None, otherwise: str) -> list[Problem]:
    """Every environment variable that holds a key is set."""
    key = f"{prefix}engine.api_key_env"
    if names == []:
        return [Problem(key, "[]", "names no environment variable", f"{key}=NAME of the one that holds the key")]
    return [
        Problem(key, name, "this environment variable is not set", f"export {name}=..., or {key}={otherwise}")
        for name in ([names] if isinstance(names, str) else names or [])
        if not os.environ.get(name)
    ]


def _credentials(prefix: str, engine: Gateway) -> list[Problem]:
    another = "NAME of another one that holds the key"
    match engine:
        case AwsEngine():
            # boto3 looks for them in many places, some of them on the network.
            return []
        case AzureEngine(token_file=str(file)):
            if Path(file).expanduser().is_file():
                return []
            return [Problem(f"{prefix}engine.token_file", file, "no such file", "a file with an Entra ID token")]
        case GeminiEngine(project=str()):
            return []
        case AzureEngine(api_key_env=None) | GeminiEngine(api_key_env=None):
            other = "token_file=FILE" if isinstance(engine, AzureEngine) else "project=PROJECT of Vertex AI"
            hint = f"{prefix}engine.api_key_env=NAME, or {prefix}engine.{other}"
            return [Problem(f"{prefix}engine.api_key_env", "null", "there are no credentials", hint)]
        case _:
            return _keys(prefix, engine.api_key_env, another)
