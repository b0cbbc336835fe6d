"""Which class answers for which engine: its module is loaded when it is made, and with it the vendor's SDK."""

from __future__ import annotations

from importlib import import_module

from matrix.errors import ConfigError, Problem
from matrix.serving.backend import Backend
from matrix.spec.model import ModelSpec
from matrix.spec.services import EngineSpec

_CLASSES = {
    "simulated": "simulated.backend:SimulatedBackend",
    "sandbox": "sandbox:SandboxBackend",
    "container": "containers:ContainerBackend",
    "openai": "gateways.openai:OpenAIGateway",
    "azure": "gateways.azure:AzureGateway",
    "anthropic": "gateways.anthropic:AnthropicGateway",
    "llama_api": "gateways.llama_api:LlamaApiGateway",
    "gemini": "gateways.gemini:GeminiGateway",
    "bedrock": "gateways.bedrock:BedrockGateway",
    "sagemaker": "gateways.sagemaker:SagemakerGateway",
}
"""By the engine's kind, below `matrix.serving`."""


def backend_of(engine: EngineSpec, model: ModelSpec) -> Backend:
    """Make what answers for an engine that we serve ourselves.

    Args:
        engine: The engine.
        model: `model.name` is what the vendor calls it.

    Raises:
        MatrixError: It can't be made: the engine has a server of its own, or a credential or a file is missing.
    """
    if engine.kind not in _CLASSES:
        served = ", ".join(_CLASSES)
        raise ConfigError([Problem("engine.kind", engine.kind, f"has a server of its own; here there are {served}")])
    module, _, name = _CLASSES[engine.kind].partition(":")
    made: Backend = getattr(import_module(f"matrix.serving.{module}"), name)(engine, model)
    return made
