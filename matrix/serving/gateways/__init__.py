"""Other vendors' APIs behind OpenAI's: one module for each, loaded when its gateway is made."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from matrix.spec.engine import RemoteEngine
from matrix.spec.model import ModelSpec

if TYPE_CHECKING:
    from matrix.serving.gateways.base import Gateway

_CLASSES = {
    "openai": "OpenAIGateway",
    "azure": "AzureGateway",
    "anthropic": "AnthropicGateway",
    "llama_api": "LlamaApiGateway",
    "gemini": "GeminiGateway",
    "bedrock": "BedrockGateway",
    "sagemaker": "SagemakerGateway",
}
"""Of each kind of engine; the module has the kind's name."""


def gateway_of(kind: str, engine: RemoteEngine, model: ModelSpec) -> Gateway:
    """The gateway for an engine.

    Args:
        kind: The engine's.
        engine: How to reach the vendor.
        model: `model.name` is what the vendor calls it.

    Raises:
        AppError: A key isn't where the engine says.
    """
    made: Gateway = getattr(import_module(f"matrix.serving.gateways.{kind}"), _CLASSES[kind])(engine, model)
    return made
