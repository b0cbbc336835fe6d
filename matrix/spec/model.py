"""What is served and how a request samples from it: the config groups `model` and `sampling`."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from matrix.spec.base import Spec


class Price(Spec):
    """What a paid API asks for, in US dollars per million tokens; None: nothing, or not known."""

    input_per_million: float | None = Field(default=None, ge=0)
    cached_input_per_million: float | None = Field(default=None, ge=0)
    """Tokens of prompts that the server had in its prefix cache; None: as the others."""
    output_per_million: float | None = Field(default=None, ge=0)
    """Tokens of answers, reasoning included."""

    @property
    def is_known(self) -> bool:
        """Whether there is anything to count with."""
        return self.input_per_million is not None or self.output_per_million is not None

    def usd(self, prompt: int, cached_prompt: int, completion: int) -> float:
        """What so many tokens cost; those of `cached_prompt` are part of `prompt`."""
        full = self.input_per_million or 0.0
        cached = full if self.cached_input_per_million is None else self.cached_input_per_million
        answers = completion * (self.output_per_million or 0.0)
        return ((prompt - cached_prompt) * full + cached_prompt * cached + answers) / 1e6


class ModelSpec(Spec):
    """A model and the way it fits on GPUs."""

    name: str = Field(min_length=1)
    """Short name: the name it is served under and the one that requests ask for."""
    source: str | None = None
    """Where the weights are: `org/name` or `org/name@revision` on the hub, a folder, `s3://...` or `package:NAME`; None
    for a model that somebody else serves (model=api)."""
    card: str | None = None
    """Page where a stranger can check what the model is."""
    parameters_b: float | None = Field(default=None, gt=0)
    """All parameters in billions, experts that are not active included."""
    bytes_per_parameter: float = Field(default=2, gt=0)
    """Of the stored weights: 2 for bf16, 1 for FP8, about 0.5 for MXFP4."""
    kv_bytes_per_token: float | None = Field(default=None, gt=0)
    """Bytes of KV cache that one token takes in all layers together, unquantised; None: not known, not checked."""
    context_length: int | None = Field(default=None, gt=0)
    """Tokens of prompt and answer together."""
    tensor_parallel: int = Field(default=1, gt=0)
    pipeline_parallel: int = Field(default=1, gt=0)
    tool_parser: str | None = None
    """Name of vLLM's parser for the model's tool calls."""
    reasoning_parser: str | None = None
    """Name of vLLM's parser that takes the reasoning apart from the answer."""
    args: dict[str, Any] = {}
    """More `vllm serve` arguments that the model needs; `engine.args` win over them."""
    price: Price = Price()


class SamplingSpec(Spec):
    """How an answer is drawn. A field that is None isn't sent: the server's default holds."""

    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    max_tokens: int | None = Field(default=None, gt=0)
    n: int = Field(default=1, gt=0)
    """Answers per request."""
    stop: list[str] | None = None
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    repetition_penalty: float | None = Field(default=None, gt=0)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0)
    extra: dict[str, Any] = {}
    """More fields of the request body, passed on as they are (`response_format`, `structured_outputs`, ...)."""
