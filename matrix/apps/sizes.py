"""How large an engine is, from the spec alone: its GPUs, its weights, its KV cache."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from matrix.spec import ModelSpec, SglangEngine, VllmEngine

ModelEngine = VllmEngine | SglangEngine
"""The engines that load a model."""

TENSOR = ("tensor_parallel_size", "tp_size", "tp")
PIPELINE = ("pipeline_parallel_size", "pp_size", "pp")
DATA = ("data_parallel_size", "dp_size", "dp")
CONTEXT = ("max_model_len", "context_length")
GPU_SHARE = ("gpu_memory_utilization", "mem_fraction_static")
OFFLOAD = ("cpu_offload_gb",)
NUMBERS = (*TENSOR, *PIPELINE, *DATA, "prefill_context_parallel_size", *GPU_SHARE, *OFFLOAD)
"""Arguments that sizes are computed from, and that have to be numbers."""

_SHARE = {"vllm": 0.92, "sglang": 0.88}
"""What they take of a GPU's memory for weights and KV cache unless told otherwise (vLLM: `CacheConfig`; SGLang sets it
by the GPU, to about this)."""
_BYTES = {"float32": 4.0, "float": 4.0, "float16": 2.0, "half": 2.0, "bfloat16": 2.0}
# Texts, since few configs need them and compiling takes longer than a check.
_FOUR_BITS = "fp4|int4|w4|q4|awq|gptq|bitsandbytes"
_EIGHT_BITS = "fp8|int8|w8|q8"
_KV_EIGHT_BITS = "fp8|int8|turboquant_k8"
_KV_FOUR_BITS = "fp4|nvfp4|int4|turboquant|ultraquant"
_UNITS = {"": 1, "k": 10**3, "K": 2**10, "m": 10**6, "M": 2**20, "g": 10**9, "G": 2**30}


@dataclass(frozen=True)
class Parallel:
    """How an engine is split over GPUs.

    Attributes:
        tensor: GPUs that share every layer.
        pipeline: Stages, each with its part of the layers.
        data: Copies of the model inside one engine.
    """

    tensor: int
    pipeline: int
    data: int

    @property
    def stage(self) -> int:
        """GPUs of one stage, which stay inside a node."""
        return self.tensor * self.data

    @property
    def gpus(self) -> int:
        """GPUs of the whole engine."""
        return self.stage * self.pipeline

    def nodes(self, gpus_per_node: float) -> int:
        """Nodes that the engine spans: as few as hold it with the same number of stages on each."""
        fit = (n for n in range(1, self.pipeline + 1) if self.pipeline % n == 0 and self.gpus / n <= gpus_per_node)
        return next(fit, self.pipeline)


@dataclass(frozen=True)
class Memory:
    """Memory of one replica in GB; None: not known.

    Attributes:
        weights_gb: The weights.
        request_gb: KV cache of one request that is as long as the context.
        room_gb: What there is for weights and KV cache on GPUs, for the KV cache alone on the CPU.
        kv_gb: What there is for the KV cache.
    """

    weights_gb: float | None
    request_gb: float | None
    room_gb: float
    kv_gb: float | None


def arguments(engine: ModelEngine, model: ModelSpec) -> dict[str, Any]:
    """Arguments of the engine's command line by their names with underscores; `engine.args` win over `model.args`."""
    given = [*model.args.items(), *engine.args.items()]
    return {name.replace("-", "_"): value for name, value in given}


def number(value: object) -> float | None:
    """A number as engines read it, `32k` (32000) and `32K` (32768) included; None for anything else."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgG]?)", str(value).strip())
    return float(match[1]) * _UNITS[match[2]] if match else None


def parallel_of(engine: ModelEngine, model: ModelSpec) -> Parallel:
    """How the engine is split; its arguments win over the model's fields."""
    args = arguments(engine, model)

    def size(names: tuple[str, ...], otherwise: int) -> int:
        given = next((found for name in names if (found := number(args.get(name))) is not None), otherwise)
        return max(1, int(given))

    # SGLang's data-parallel attention is over the GPUs of the tensor parallel group itself.
    data = 1 if args.get("enable_dp_attention") else size(DATA, 1)
    tensor = size(TENSOR, model.tensor_parallel) * size(("prefill_context_parallel_size",), 1)
    return Parallel(tensor, size(PIPELINE, model.pipeline_parallel), data)


def weights_gb(engine: ModelEngine, model: ModelSpec) -> float | None:
    """Weights of one copy of the model, in the type that the arguments `quantization` and `dtype` ask for."""
    if model.parameters_b is None:
        return None
    args = arguments(engine, model)
    stored = model.bytes_per_parameter
    quantization = str(args.get("quantization") or "")
    if re.search(_FOUR_BITS, quantization):
        return model.parameters_b * min(stored, 0.5)
    if re.search(_EIGHT_BITS, quantization):
        return model.parameters_b * min(stored, 1)
    # The type of what is stored in fewer bits stays what it is.
    return model.parameters_b * (stored if stored < 2 else _BYTES.get(str(args.get("dtype")), stored))


def kv_bytes_per_token(engine: ModelEngine, model: ModelSpec) -> float | None:
    """Bytes of KV cache that a token takes, in the type that the arguments `kv_cache_dtype` and `dtype` ask for."""
    if model.kv_bytes_per_token is None:
        return None
    args = arguments(engine, model)
    kind = str(args.get("kv_cache_dtype") or "auto")
    if re.match(_KV_EIGHT_BITS, kind):
        return model.kv_bytes_per_token / 2
    if re.match(_KV_FOUR_BITS, kind):
        return model.kv_bytes_per_token / 4
    # By default the cache has the type of the model.
    return model.kv_bytes_per_token * (_BYTES.get(str(args.get("dtype")), 2) / 2 if kind == "auto" else 1)


def context_of(engine: ModelEngine, model: ModelSpec) -> float | None:
    """Tokens of the longest request; None: the engine finds it out (`max_model_len=auto`)."""
    args = arguments(engine, model)
    return next((number(args[name]) for name in CONTEXT if name in args), model.context_length)


def memory_of(engine: ModelEngine, model: ModelSpec, *, cpu: bool, gpu_memory_gb: float) -> Memory:
    """What a replica needs and what there is.

    KV cache that every GPU keeps a copy of (MLA; fewer KV heads than GPUs) is counted once, so what doesn't fit by
    this doesn't fit, and a little of what does may not.
    """
    weights, per_token = weights_gb(engine, model), kv_bytes_per_token(engine, model)
    context = context_of(engine, model)
    request = per_token * context / 1e9 if per_token and context else None
    if cpu and isinstance(engine, VllmEngine):
        return Memory(weights, request, engine.kv_cache_gb, engine.kv_cache_gb)
    args, parallel = arguments(engine, model), parallel_of(engine, model)
    share = next((found for name in GPU_SHARE if (found := number(args.get(name)))), _SHARE[engine.kind])
    # Expert parallel spreads the experts over the data-parallel copies, too.
    gpus = parallel.tensor * parallel.pipeline * (parallel.data if args.get("enable_expert_parallel") else 1)
    room = gpus * (gpu_memory_gb * share + (number(args.get("cpu_offload_gb")) or 0))
    return Memory(weights, request, room, None if weights is None else max(0.0, room - weights))
