"""Rules on room: GPUs, nodes, memory, and all apps together."""

from __future__ import annotations

from typing import Any

import pytest

from tests.check.specs import API, MODEL, SLURM, on_gpus, problems

SIMULATED = {"engine": {"kind": "simulated"}, "model": API}
VLLM = {"engine": {"kind": "vllm"}, "model": MODEL | {"name": "other"}}
BIG = {"parameters_b": 70}


@pytest.mark.parametrize(
    ("engine", "model", "said"),
    [
        ({}, {"tensor_parallel": 16}, "model.tensor_parallel=16: a tensor parallel group stays inside a node, and a node has 8 GPUs (cluster.gpus_per_node) (at most 8; split over nodes with model.pipeline_parallel"),
        ({"args": {"tensor-parallel-size": 16}}, {}, "engine.args.tensor-parallel-size=16: a tensor"),
        ({"args": {"data_parallel_size": 4}}, {"tensor_parallel": 4}, "engine.args.data_parallel_size=4: TP x DP = 4 x 4 GPUs of one stage stay inside a node"),
        ({}, {"tensor_parallel": 8, "pipeline_parallel": 3}, "model.pipeline_parallel=3: TP x PP x DP = 8 x 3 x 1 GPUs take 3 nodes of 8 GPUs, the cluster has 1 (cluster.workers=3)"),
        ({}, BIG, "model.name=m: 140 GB of weights don't fit in the 74 GB that TP x PP GPUs leave to vLLM (raise model.tensor_parallel or"),
        ({"args": {"gpu_memory_utilization": 0.1}}, {}, "model.name=m: 16 GB of weights don't fit in the 8 GB"),
        ({"args": {"dtype": "float32"}}, {"parameters_b": 30}, "model.name=m: 120 GB of weights"),
        # 131072 bytes x 1 million; 57.6 GB are left.
        ({}, {"context_length": 1_000_000}, "model.context_length=1000000: a request of that many tokens takes 131.1 GB of KV cache, more than the 57.6 GB that the weights leave of the GPUs (model.context_length=439296, or raise model.tensor_parallel"),
        ({"args": {"max-model-len": "1m"}}, {}, "engine.args.max-model-len=1000000: a request"),
        ({}, {"args": {"max_model_len": 500000}}, "model.args.max_model_len=500000: a request of that many tokens takes 65.5 GB of KV cache"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_with_what_would(engine: dict[str, Any], model: dict[str, Any], said: str) -> None:
    (problem,) = on_gpus(engine, model)
    assert said in problem


@pytest.mark.parametrize(
    ("engine", "model"),
    [
        ({}, {"tensor_parallel": 8}),
        ({"args": {"quantization": "fp8"}}, BIG),
        ({}, BIG | {"tensor_parallel": 2}),
        ({"args": {"cpu_offload_gb": 80}}, BIG),
        ({"args": {"max_model_len": 8192}}, {"context_length": 1_000_000}),
        ({"args": {"kv_cache_dtype": "fp8"}}, {"context_length": 800_000}),
        ({"args": {"max_model_len": "auto"}}, {"context_length": 1_000_000}),
        ({}, {"context_length": 1_000_000, "kv_bytes_per_token": None}),
        ({"replicas": {"min": 1, "max": 100}}, {}),
    ],
)
def test_what_fits_is_let_through(engine: dict[str, Any], model: dict[str, Any]) -> None:
    assert on_gpus(engine, model) == []


def test_what_was_named_as_fitting_fits() -> None:
    (problem,) = on_gpus({}, {"context_length": 1_000_000})
    tokens = int(problem.split("(model.context_length=")[1].split(",")[0])
    assert on_gpus({}, {"context_length": tokens}) == []
    assert on_gpus({}, {"context_length": tokens + 2048}) != []


def test_on_the_cpu_the_kv_cache_is_what_it_is_given() -> None:
    cluster = {"kind": "local", "cpus": 4, "gpus_per_node": 0}
    model = MODEL | {"parameters_b": 0.1}
    assert problems(cluster=cluster, engine={"kind": "vllm"}, model=model | {"context_length": 7000}) == []
    (said,) = problems(cluster=cluster, engine={"kind": "vllm"}, model=model)
    assert said == (
        "model.context_length=8192: a request of that many tokens takes 1.1 GB of KV cache, more than "
        "engine.kv_cache_gb=1 (model.context_length=7168, or engine.kv_cache_gb=1.1)"
    )
    assert problems(cluster=cluster, engine={"kind": "vllm", "kv_cache_gb": 1.1}, model=model) == []
    (gpus,) = problems(cluster=cluster, engine={"kind": "sglang", "python": "/bin/sh"}, model=model)
    assert "a node has 0 GPUs" in gpus
    assert "a cluster with GPUs" in gpus


def test_all_apps_together_have_to_fit() -> None:
    apps = {name: {"engine": {"kind": "vllm"}, "model": MODEL | {"tensor_parallel": 4}} for name in ("a", "b")}
    assert problems(cluster=SLURM, apps=apps) == []
    (said,) = problems(cluster=SLURM, apps=apps, **VLLM)
    assert said == (
        "engine.replicas=1: no room for replica 1 of 1 beside the other apps: needs 1 GPU; worker-1 has 0 of 8 free "
        "(fewer or smaller apps, or more cluster.workers)"
    )
    assert problems(cluster=SLURM | {"workers": 2}, apps=apps, **VLLM) == []
    # No node has room for the third group of 5, though there are 6 GPUs left.
    engine = {"kind": "vllm", "replicas": 3}
    (cut,) = problems(cluster=SLURM | {"workers": 2}, engine=engine, model=MODEL | {"tensor_parallel": 5})
    assert "engine.replicas=3: no room for replica 3 of 3: needs 5 GPU; worker-1 has 3 of 8 free" in cut
    assert "(engine.replicas=2, or more cluster.workers)" in cut


def test_replicas_that_scale_need_room_for_the_least() -> None:
    scaled = {"engine": {"kind": "vllm", "replicas": {"min": 9, "max": 99}}, "model": MODEL}
    (said,) = problems(cluster=SLURM, apps={"a": scaled})
    assert said.startswith("apps.a.engine.replicas.min=9: no room for replica 9 of 9: needs 1 GPU")
    assert (
        problems(cluster=SLURM, apps={"a": {**scaled, "engine": {"kind": "vllm", "replicas": {"min": 0, "max": 99}}}})
        == []
    )


def test_cpus_count_too() -> None:
    local = {"kind": "local", "cpus": 2, "gpus_per_node": 0}
    apps = dict.fromkeys(("a", "b", "c"), SIMULATED)
    (said,) = problems(cluster=local, apps=apps)
    assert said.startswith(
        "apps.c.engine.replicas=1: no room for replica 1 of 1 beside the other apps: needs 1 CPU; this machine has 0 of 2 free"
    )


def test_an_app_that_does_not_fit_by_itself_is_said_once() -> None:
    (said,) = problems(cluster=SLURM, apps={"a": {"engine": {"kind": "vllm"}, "model": MODEL | {"tensor_parallel": 9}}})
    assert said.startswith("apps.a.model.tensor_parallel=9")
    assert "split over nodes with apps.a.model.pipeline_parallel" in said


def test_a_plan_shows_itself_what_has_no_room() -> None:
    apps = {"a": {"engine": {"kind": "vllm", "replicas": 9}, "model": MODEL}}
    assert len(problems(cluster=SLURM, apps=apps)) == 1
    assert problems(cluster=SLURM, apps=apps, plan=True) == []
