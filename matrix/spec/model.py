"""What is served and how a request samples from it: the config groups `model`, `engine` and `sampling`."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

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
    source: str
    """Where the weights are: `org/name` or `org/name@revision` on the hub, a folder, `s3://...` or `package:NAME`."""
    card: str
    """Page where a stranger can check what the model is."""
    parameters_b: float = Field(gt=0)
    """All parameters in billions, experts that are not active included."""
    bytes_per_parameter: float = Field(default=2, gt=0)
    """Of the stored weights: 2 for bf16, 1 for FP8, about 0.5 for MXFP4."""
    context_length: int = Field(gt=0)
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


class VllmEngine(Spec):
    """vLLM under a Ray Serve replica, on GPUs or on the CPU."""

    kind: Literal["vllm"]
    replicas: int = Field(default=1, gt=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: the GPUs if the cluster has some, else the CPU."""
    cpus: float = Field(default=1, gt=0)
    """CPUs that Ray sets aside for a replica (per GPU on GPUs)."""
    kv_cache_gb: float = Field(default=1, gt=0)
    """KV cache on the CPU, in GB; on a GPU vLLM takes what `gpu_memory_utilization` leaves."""
    args: dict[str, Any] = {}
    """`vllm serve` arguments by their own names, dashes or underscores; true is a bare flag, null takes one away."""
    env: dict[str, Annotated[str, Field(coerce_numbers_to_str=True)]] = {}
    """Environment of the engine process, on top of what matrix sets."""
    start_timeout_s: float = Field(default=1800, gt=0)


_LIKE = "http://HOST:8000/v1"


class OpenAIEngine(Spec):
    """Any server with an OpenAI-compatible API that is already running; needs no cluster."""

    kind: Literal["openai"]
    base_url: str | list[str]
    """Up to and including `/v1`. A list: replicas of one model, each of which can answer any request."""
    api_key_env: str | None = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; None: the servers ask for none."""

    @property
    def urls(self) -> list[str]:
        """The base URLs of all servers."""
        given = [self.base_url] if isinstance(self.base_url, str) else self.base_url
        return [url.rstrip("/") for url in given]

    @field_validator("base_url", mode="before")
    @classmethod
    def _is_servers(cls, given: Any) -> Any:
        some: list[Any] = given if isinstance(given, list) else [given]
        if not some:
            raise ValueError(f"[] names no server: give one URL such as {_LIKE}, or a list of them")
        if wrong := [str(url) for url in some if not (isinstance(url, str) and _is_base_url(url))]:
            raise ValueError(f"{', '.join(wrong)}: no http or https URL of a server, such as {_LIKE}")
        servers = [url.rstrip("/") for url in some]
        if twice := sorted({url for url in servers if servers.count(url) > 1}):
            raise ValueError(f"{', '.join(twice)}: listed more than once, which would give it no more requests")
        return given


def _is_base_url(url: str) -> bool:
    """Whether a path such as `/chat/completions` can be put behind it."""
    if set(url) & set(" ?#"):
        return False
    try:
        parts = urlsplit(url)
        # Reading the port raises for one that is no number up to 65535.
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


EngineSpec = Annotated[VllmEngine | OpenAIEngine, Field(discriminator="kind")]


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
