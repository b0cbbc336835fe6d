"""What serves a model: of the config group `engine` those that speak OpenAI's API; docs/engines.md describes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from matrix.spec.base import Spec

_LIKE = "http://HOST:8000/v1"
_GRPC = "grpc://"


class Replicas(Spec):
    """How many copies of an app there are. A number instead is both `min` and `max`: no autoscaling."""

    min: int = Field(default=1, ge=0)
    """Never fewer; 0: none while nobody asks for anything."""
    max: int = Field(default=1, gt=0)
    """Never more."""
    target_in_flight: float = Field(default=64, gt=0)
    """Outstanding requests per replica that autoscaling aims for."""
    upscale_delay_s: float = Field(default=5, ge=0)
    """The load has to be that high for so long before replicas are added."""
    downscale_delay_s: float = Field(default=120, ge=0)
    """The load has to be that low for so long before one is taken away."""

    @model_validator(mode="before")
    @classmethod
    def _fixed(cls, given: object) -> object:
        if isinstance(given, dict | Replicas):
            return given
        if not isinstance(given, int) or isinstance(given, bool) or given < 1:
            raise ValueError(f"should be a number of replicas from 1 on, or min and max, not {given!r}")
        return {"min": given, "max": given}

    @model_validator(mode="after")
    def _has_room(self) -> Replicas:
        if self.min > self.max:
            raise ValueError(f"min={self.min} is more than max={self.max}: set both")
        return self

    @property
    def scales(self) -> bool:
        """Whether their number follows the load."""
        return self.min < self.max


class AppEngine(Spec):
    """What all engines have that can run as an app on a cluster."""

    replicas: Replicas = Replicas()
    cpus: float = Field(default=1, gt=0)
    """CPUs that Ray sets aside for a replica (per GPU on GPUs)."""
    env: dict[str, Annotated[str, Field(coerce_numbers_to_str=True)]] = {}
    """Environment of the engine process, on top of what matrix sets."""
    resources: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Logical resources that a replica takes on each of its nodes, which pin it to nodes that have them."""
    grpc: bool = False
    """Whether its replicas take gRPC, too."""
    start_timeout_s: float = Field(default=1800, gt=0)
    drain_timeout_s: float = Field(default=60, ge=0)
    """Seconds for which a replica that is to go may finish what it is working on."""
    hang_timeout_s: float = Field(default=300, gt=0)
    """A replica with requests running that makes no token for so long is replaced."""


class VllmEngine(AppEngine):
    """vLLM under a Ray Serve replica, on GPUs or on the CPU."""

    kind: Literal["vllm"]
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: the GPUs if the cluster has some, else the CPU."""
    kv_cache_gb: float = Field(default=1, gt=0)
    """KV cache on the CPU, in GB; on a GPU vLLM takes what `gpu_memory_utilization` leaves."""
    args: dict[str, Any] = {}
    """`vllm serve` arguments by their own names, dashes or underscores; true is a bare flag, null takes one away."""


class SglangEngine(AppEngine):
    """SGLang under a Ray Serve replica, on GPUs."""

    kind: Literal["sglang"]
    python: str | None = None
    """Interpreter of the environment that SGLang is installed in; None: the one that matrix runs in."""
    args: dict[str, Any] = {}
    """Arguments of `sglang.launch_server` by their own names; true is a bare flag, null takes one away."""


class Distribution(Spec):
    """A random quantity, drawn from a named distribution. A number instead is a constant."""

    kind: Literal["constant", "uniform", "normal", "lognormal", "exponential", "gamma"] = "constant"
    mean: float = Field(ge=0)
    std: float = Field(default=0, ge=0)
    """Of `normal`, `lognormal` and `gamma`; `uniform` is as wide as this says, `exponential` has its mean."""
    min: float = Field(default=0, ge=0)
    """What is drawn is brought between `min` and `max`."""
    max: float | None = Field(default=None, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _constant(cls, given: object) -> object:
        if isinstance(given, int | float) and not isinstance(given, bool):
            return {"kind": "constant", "mean": given}
        return given


class SimulatedEngine(AppEngine):
    """No model at all: answers of a length and with a latency drawn from distributions, failures included."""

    kind: Literal["simulated"]
    cpus: float = Field(default=1, ge=0)
    seed: int = Field(default=0, ge=0)
    """The same requests in the same order get the same answers, latencies and failures."""
    first_token_s: Distribution = Distribution(mean=0.1)
    """Seconds from a request's start to its first token."""
    token_s: Distribution = Distribution(mean=0.01)
    """Seconds between two tokens; drawn once for each request."""
    output_tokens: Distribution = Distribution(mean=128)
    """Tokens of an answer; `max_tokens` of the request cuts it."""
    outputs: str | None = None
    """JSONL file of answers that are replayed instead (`text`, or `output_tokens`), one after another."""
    error_rate: float = Field(default=0, ge=0, le=1)
    """Share of requests that fail with HTTP 500."""
    hang_rate: float = Field(default=0, ge=0, le=1)
    """Share of requests that never get an answer."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    """More are refused with 429 and `Retry-After`; None: no limit."""
    tokens_per_minute: float | None = Field(default=None, gt=0)
    max_running: int | None = Field(default=None, gt=0)
    """Requests that are worked on at a time, others queue; None: no limit."""
    kv_cache_tokens: int | None = Field(default=None, gt=0)
    """Tokens that the KV cache holds; a request that doesn't fit (prompt and answer) queues. None: no limit."""
    prefix_cache_tokens: int | None = Field(default=None, gt=0)
    """Tokens of earlier prompts and answers that each replica remembers: what a prompt has of them takes no time
    (`first_token_s` counts for the rest), and the usage tells of it. None: no prefix cache."""


class RemoteEngine(AppEngine):
    """Somebody else's API behind a gateway: a server of ours in front of it, which speaks OpenAI's API."""

    cpus: float = Field(default=1, ge=0)
    requests_per_minute: float | None = Field(default=None, gt=0)
    """For each key: requests above it wait, and get 429 with `Retry-After` when that takes too long; None: no limit."""
    tokens_per_minute: float | None = Field(default=None, gt=0)
    """The same for tokens of prompts and answers, estimated before a request and corrected after it."""
    timeout_s: float = Field(default=600, gt=0)
    """Limit of one call of the API."""
    max_attempts: int = Field(default=3, gt=0)
    """Calls for one request that may fail by the API's fault before the client hears of it."""


class OpenAIEngine(RemoteEngine):
    """Any server with an OpenAI-compatible API that is already running; talked to directly, or through a shared app.

    Limits, time-out and attempts are those of the app: all that use it share them.
    """

    kind: Literal["openai"]
    base_url: str | list[str]
    """Up to and including `/v1`, or `grpc://HOST:PORT` of a server of matrix. A list: replicas of one model, each of
    which can answer any request."""
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
            raise ValueError(
                f"{', '.join(wrong)}: no http or https URL of a server, such as {_LIKE}, and no grpc://HOST:PORT"
            )
        servers = [url.rstrip("/") for url in some]
        if len({url.startswith(_GRPC) for url in servers}) > 1:
            raise ValueError(f"{', '.join(servers)}: some are asked by HTTP and some by gRPC: give those of one kind")
        if twice := sorted({url for url in servers if servers.count(url) > 1}):
            raise ValueError(f"{', '.join(twice)}: listed more than once, which would give it no more requests")
        return given


def _is_base_url(url: str) -> bool:
    """Whether a path such as `/chat/completions` can be put behind it, or it is a host and port for gRPC."""
    if set(url) & set(" ?#"):
        return False
    try:
        parts = urlsplit(url)
        # Reading the port raises for one that is no number up to 65535.
        if parts.scheme == "grpc":
            return bool(parts.hostname) and bool(parts.port) and parts.path in {"", "/"}
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


class GatewayEngine(RemoteEngine):
    """What the gateways to a vendor's API have."""

    base_url: str | None = None
    """Another address of the vendor's API (a proxy, a private endpoint); None: the vendor's own."""

    @field_validator("base_url")
    @classmethod
    def _is_address(cls, given: str | None) -> str | None:
        if given is not None and not _is_base_url(given):
            raise ValueError(f"{given}: no http or https URL, such as https://HOST")
        return given


class AzureEngine(GatewayEngine):
    """Azure OpenAI. `model.name` is the name of the deployment."""

    kind: Literal["azure"]
    base_url: str
    """`https://RESOURCE.openai.azure.com`."""
    api_version: str
    api_key_env: str | list[str] | None = "AZURE_OPENAI_API_KEY"
    """Names of environment variables that hold keys; several take turns. None with `token_file`."""
    token_file: str | None = None
    """File with an Entra ID token, read again when it changes or the vendor refuses it."""


class AnthropicEngine(GatewayEngine):
    """Anthropic's Messages API."""

    kind: Literal["anthropic"]
    api_key_env: str | list[str] = "ANTHROPIC_API_KEY"
    thinking_budget: int | None = Field(default=None, gt=0)
    """Tokens that the model may think for, where a request doesn't say; None: no thinking."""


class LlamaApiEngine(GatewayEngine):
    """Meta's Llama API."""

    kind: Literal["llama_api"]
    api_key_env: str | list[str] = "LLAMA_API_KEY"


class GeminiEngine(GatewayEngine):
    """Google's Gemini API, or Vertex AI with `project`."""

    kind: Literal["gemini"]
    api_key_env: str | list[str] | None = "GEMINI_API_KEY"
    project: str | None = None
    """Project of Vertex AI, with Google's application default credentials instead of a key."""
    location: str = "global"
    """Region of Vertex AI."""
    thinking_budget: int | None = Field(default=None, ge=-1)
    """Tokens that it may think for, where a request doesn't say; 0: none, -1: up to the model, None: its default."""


class AwsEngine(GatewayEngine):
    """What both of AWS's have: credentials by boto3's chain (environment, profile, role), renewed when they expire."""

    region: str
    profile: str | None = None
    """Profile in AWS's own config files; None: boto3's default chain."""
    role_arn: str | None = None
    """Role that is assumed, and assumed again before its credentials expire."""


class BedrockEngine(AwsEngine):
    """Amazon Bedrock's Converse API: `model.name` is a model id or an inference profile."""

    kind: Literal["bedrock"]
    thinking_budget: int | None = Field(default=None, gt=0)
    """Tokens that a Claude model may think for, where a request doesn't say; None: no thinking."""


class SagemakerEngine(AwsEngine):
    """An endpoint of Amazon SageMaker whose container speaks OpenAI's chat format."""

    kind: Literal["sagemaker"]
    endpoint: str
    """Name of the endpoint."""


Gateway = AzureEngine | AnthropicEngine | LlamaApiEngine | GeminiEngine | BedrockEngine | SagemakerEngine
"""The engines that are somebody else's API."""
