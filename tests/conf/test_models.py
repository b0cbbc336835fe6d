"""Every file of conf/model is a model that vLLM knows how to serve, on as many 80 GB GPUs as it says."""

from __future__ import annotations

import ast
import importlib.util
import math
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from matrix.spec import ModelSpec

CONF = Path(__file__).parents[2] / "conf" / "model"
GPU_GB = 80 * 0.9
ACTIVATIONS_GB = 5
"""Of every GPU: activations, CUDA graphs, NCCL."""


@dataclass(frozen=True)
class Shape:
    """What the KV cache depends on, from the model's config.json; `layers` are those that look at the whole context."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int

    def cache_gb(self, tokens: int, tensor_parallel: int, pipeline_parallel: int) -> float:
        """KV cache on one GPU in bf16; vLLM copies KV heads that are fewer than the GPUs."""
        layers, kv_heads = -(-self.layers // pipeline_parallel), -(-self.kv_heads // tensor_parallel)
        return tokens * layers * kv_heads * self.head_dim * 2 * 2 / 1e9


# MLA (DeepSeek, Kimi) keeps 512 + 64 numbers per token instead of keys and values: one "head" of 288.
SHAPES = {
    "smollm2": Shape(30, 9, 3, 64),
    "llama1b": Shape(16, 32, 8, 64),
    "llama3b": Shape(28, 24, 8, 128),
    "llama8b": Shape(32, 32, 8, 128),
    "llama70b": Shape(80, 64, 8, 128),
    "llama3_1_70b": Shape(80, 64, 8, 128),
    "llama405b": Shape(126, 128, 8, 128),
    "llama405b_fp8": Shape(126, 128, 8, 128),
    "llama4_scout": Shape(48, 40, 8, 128),
    "llama4_maverick": Shape(48, 40, 8, 128),
    "deepseek_r1": Shape(61, 128, 1, 288),
    "qwen3_8b": Shape(36, 32, 8, 128),
    "qwen3_32b": Shape(64, 64, 8, 128),
    "qwen3_235b": Shape(94, 64, 4, 128),
    "qwen2_5_7b": Shape(28, 28, 4, 128),
    "qwen2_5_32b": Shape(64, 40, 8, 128),
    "qwen2_5_72b": Shape(80, 64, 8, 128),
    "gpt_oss_20b": Shape(12, 64, 8, 64),
    "gpt_oss_120b": Shape(18, 64, 8, 64),
    "gemma3_270m": Shape(3, 4, 1, 256),
    "gemma3_1b": Shape(4, 4, 1, 256),
    "gemma3_4b": Shape(5, 8, 4, 256),
    "gemma3_12b": Shape(8, 16, 8, 256),
    "gemma3_27b": Shape(10, 32, 16, 128),
    "mistral_7b": Shape(32, 32, 8, 128),
    "ministral_8b": Shape(36, 32, 8, 128),
    "mistral_small": Shape(40, 32, 8, 128),
    "kimi_k2": Shape(61, 64, 1, 288),
    "cwm": Shape(16, 48, 8, 128),
}

API, SANDBOX = "api", "sandbox"
"""What somebody else serves: a name, and nothing that the other files say of a model."""

each_file = pytest.mark.parametrize("name", sorted(path.stem for path in CONF.iterdir()))
each_model = pytest.mark.parametrize("name", sorted({path.stem for path in CONF.iterdir()} - {API, SANDBOX}))


def load(name: str) -> ModelSpec:
    return ModelSpec.model_validate(yaml.safe_load((CONF / f"{name}.yaml").read_text()))


def vllm_file(pattern: str) -> ast.Module:
    """Parse a file of the installed vLLM without importing it, which would take 20 s."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("vLLM is not installed: its parsers and arguments can't be looked up")
    root = Path(spec.submodule_search_locations[0])
    found = sorted(root.glob(pattern))
    assert found, f"vLLM has no {pattern} any more: look for its new place"
    return ast.parse(found[0].read_text())


def registered(package: str, table: str) -> set[str]:
    """Names in vLLM's table of tool or reasoning parsers."""
    for node in vllm_file(f"{package}/__init__.py").body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == table:
            return set(ast.literal_eval(node.value))
    pytest.fail(f"vllm/{package}/__init__.py has no {table} any more: look for its new place")


def serve_arguments() -> set[str]:
    """Names of the arguments of `vllm serve`: flags of the engine, fields of the server."""
    engine, server = vllm_file("engine/arg_utils.py"), vllm_file("entrypoints/**/cli_args.py")
    texts = {node.value for node in ast.walk(engine) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    fields = {ast.unparse(node.target) for node in ast.walk(server) if isinstance(node, ast.AnnAssign)}
    return fields | {text[2:].replace("-", "_") for text in texts if re.fullmatch(r"--[a-z][a-z0-9-]+", text)}


def test_set_is_complete():
    # A new model also gets its shape above.
    assert sorted(path.name for path in CONF.iterdir()) == sorted(f"{known}.yaml" for known in (*SHAPES, API, SANDBOX))


@each_file
def test_composes(name: str):
    text = (CONF / f"{name}.yaml").read_text()
    spec = load(name)
    assert spec.name == (name if name != API else "???")
    keys = re.findall(r"^([a-z_]+):", text, flags=re.MULTILINE)
    # All of them, once each: Hydra overrides only keys that are there.
    assert keys == list(ModelSpec.model_fields)


@each_model
def test_card_is_the_page_of_the_source(name: str):
    spec = load(name)
    assert re.fullmatch(r"https://huggingface\.co/[\w.-]+/[\w.-]+", spec.card)
    if not spec.source.startswith("package:"):
        assert spec.card == f"https://huggingface.co/{spec.source.split('@')[0]}"


def test_of_an_api_nothing_is_known():
    spec = load(API)
    assert spec == ModelSpec(name="???")


@each_model
def test_the_kv_cache_is_that_of_the_shape_and_of_its_comment(name: str):
    spec, shape = load(name), SHAPES[name]
    assert spec.kv_bytes_per_token == shape.layers * shape.kv_heads * shape.head_dim * 2 * 2
    (formula,) = re.findall(
        r"^# Bytes of KV cache per token: ([^;\n]*)", (CONF / f"{name}.yaml").read_text(), re.MULTILINE
    )
    formula = formula.replace("512 of latent + 64 of position", str(512 + 64))
    assert spec.kv_bytes_per_token == math.prod(int(number) for number in re.findall(r"(?<!bf)\b\d+\b", formula))
    # 4 KiB for a model of 100 million parameters to 1 MiB for one of 400 billion.
    assert 2**11 < spec.kv_bytes_per_token < 2**20


@each_file
def test_every_field_has_its_comment(name: str):
    lines = (CONF / f"{name}.yaml").read_text().splitlines()
    assert lines[0].startswith("# ")
    assert lines[0].endswith(".")
    for above, line in pairwise(lines[1:]):
        if not line.lstrip().startswith("#"):
            assert re.match(r"\s*# \S", above), f"no comment above {line!r}"
            assert len(above) - len(above.lstrip()) == len(line) - len(line.lstrip())


@each_model
def test_head_says_the_gpus(name: str):
    spec = load(name)
    head = (CONF / f"{name}.yaml").read_text().splitlines()[0]
    gpus = spec.tensor_parallel * spec.pipeline_parallel
    if spec.source.startswith("package:"):
        assert "a CPU is enough" in head
    else:
        nodes = f" on {spec.pipeline_parallel} nodes" if spec.pipeline_parallel > 1 else ""
        assert head.endswith(f": {gpus} GPU{'s' if gpus > 1 else ''} of 80 GB{nodes}.")


@each_model
def test_parallelism_suits_the_model(name: str):
    spec, shape = load(name), SHAPES[name]
    assert spec.tensor_parallel <= 8
    assert shape.heads % spec.tensor_parallel == 0
    assert max(shape.kv_heads, spec.tensor_parallel) % min(shape.kv_heads, spec.tensor_parallel) == 0
    # Inside a node first: pipeline stages are for models that outgrow one.
    assert spec.pipeline_parallel == 1 or spec.tensor_parallel == 8


@each_model
def test_weights_and_two_full_requests_fit(name: str):
    spec, shape = load(name), SHAPES[name]
    weights_gb = spec.parameters_b * spec.bytes_per_parameter / (spec.tensor_parallel * spec.pipeline_parallel)
    assert weights_gb < GPU_GB
    cache_gb = shape.cache_gb(2 * spec.context_length, spec.tensor_parallel, spec.pipeline_parallel)
    assert weights_gb + ACTIVATIONS_GB + cache_gb < GPU_GB


@each_model
def test_no_more_gpus_than_needed(name: str):
    spec, shape = load(name), SHAPES[name]
    if spec.tensor_parallel * spec.pipeline_parallel == 1:
        return
    if spec.pipeline_parallel > 1:
        tp, pp = spec.tensor_parallel, spec.pipeline_parallel - 1
    else:
        tp, pp = spec.tensor_parallel // 2, 1
    weights_gb = spec.parameters_b * spec.bytes_per_parameter / (tp * pp)
    # On the next smaller set of GPUs not even four full requests would be in flight.
    assert weights_gb + ACTIVATIONS_GB + shape.cache_gb(4 * spec.context_length, tp, pp) > GPU_GB


@each_model
def test_vllm_knows_the_parsers(name: str):
    spec = load(name)
    assert {spec.tool_parser} - {None} <= registered("tool_parsers", "_TOOL_PARSERS_TO_REGISTER")
    assert {spec.reasoning_parser} - {None} <= registered("reasoning", "_REASONING_PARSERS_TO_REGISTER")


@each_model
def test_vllm_knows_the_arguments(name: str):
    assert set(load(name).args) <= serve_arguments()
