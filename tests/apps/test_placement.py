"""What goes where, without a cluster: bundles, their order, the plan, and what is missing."""

from __future__ import annotations

import time
from typing import Any

import pytest
from pydantic import TypeAdapter

from matrix.apps.nodes import Node, nodes_of
from matrix.apps.placement import apps_of, bundles_of, missing, order, plan
from matrix.apps.sizes import context_of, kv_bytes_per_token, memory_of, number, parallel_of, weights_gb
from matrix.spec import AppSpec, AttachCluster, EngineSpec, LocalCluster, ModelSpec, SlurmCluster, VllmEngine
from matrix.spec.cluster import SlurmOptions, resources_of

ENGINE: TypeAdapter[EngineSpec] = TypeAdapter(EngineSpec)


def app(kind: str = "vllm", tp: int = 1, pp: int = 1, *, model: dict[str, Any] | None = None, **engine: Any) -> AppSpec:
    known = {"source": "org/name", "parameters_b": 8, "context_length": 1000, "kv_bytes_per_token": 1e6}
    return AppSpec(
        engine=ENGINE.validate_python({"kind": kind, **engine}),
        model=ModelSpec(name="m", tensor_parallel=tp, pipeline_parallel=pp, **(known | (model or {}))),
    )


def gpu_nodes(*free: int, of: int = 8) -> list[Node]:
    return [
        Node(f"node-{number}", {"GPU": of, "CPU": 64}, {"GPU": gpus, "CPU": 64}) for number, gpus in enumerate(free, 1)
    ]


def bundles(spec: AppSpec, *, cpu: bool = False, gpus: int = 8) -> list[dict[str, float]]:
    return bundles_of(spec.engine, spec.model, cpu=cpu, gpus_per_node=gpus)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (app(tp=4), [{"GPU": 4, "CPU": 4}]),
        (app(tp=4, cpus=2), [{"GPU": 4, "CPU": 8}]),
        # The whole replica fits in a node.
        (app(tp=2, pp=4), [{"GPU": 8, "CPU": 8}]),
        # A stage on each node; two stages on each.
        (app(tp=8, pp=2), [{"GPU": 8, "CPU": 8}] * 2),
        (app(tp=4, pp=4), [{"GPU": 8, "CPU": 8}] * 2),
        # Stages are spread evenly: not two on one node and one on the other.
        (app(tp=4, pp=3), [{"GPU": 4, "CPU": 4}] * 3),
        (app(tp=2, args={"data-parallel-size": 4}), [{"GPU": 8, "CPU": 8}]),
        (app(tp=4, pp=2, args={"data_parallel_size": 2}), [{"GPU": 8, "CPU": 8}] * 2),
        (app("sglang", tp=2, args={"dp_size": 2}), [{"GPU": 4, "CPU": 4}]),
        (app("sglang", tp=8, args={"dp_size": 8, "enable_dp_attention": True}), [{"GPU": 8, "CPU": 8}]),
        (app(tp=2, args={"tensor_parallel_size": 4}), [{"GPU": 4, "CPU": 4}]),
        (app("simulated", cpus=0.5), [{"CPU": 0.5}]),
        (app("anthropic"), [{"CPU": 1}]),
        (app("openai", base_url="http://a/v1", cpus=0), [{"CPU": 0}]),
    ],
)
def test_bundles(spec: AppSpec, expected: list[dict[str, float]]) -> None:
    assert bundles(spec) == expected


def test_bundles_on_the_cpu() -> None:
    assert bundles(app(cpus=3), cpu=True) == [{"CPU": 3}]


def test_large_groups_of_gpus_come_first() -> None:
    apps = {"small": app(), "gateway": app("gemini"), "spread": app(tp=8, pp=2), "large": app(tp=8), "other": app()}
    assert list(order(apps, gpus_per_node=8)) == ["spread", "large", "small", "other", "gateway"]


def test_small_apps_fill_what_large_ones_leave() -> None:
    apps = {"small": app(replicas=2), "large": app(tp=8), "middle": app(tp=4)}
    made = plan(gpu_nodes(8, 8), apps, gpu_memory_gb=80)
    where = {(one.app, one.replica): one.nodes for one in made.placements}
    assert not made.problems
    # The two small ones go beside the middle one: nobody else would find room on a node that is cut up.
    assert where["small", 1] == where["small", 2] == where["middle", 1] != where["large", 1]
    assert {node.name: node.available["GPU"] for node in made.nodes} == {"node-1": 0, "node-2": 2}


def test_the_fullest_node_with_room_is_taken() -> None:
    made = plan(gpu_nodes(8, 3, 2, 1), {"a": app(tp=2)}, gpu_memory_gb=80)
    assert made.placements[0].nodes == ["node-3"]


def test_a_replica_over_several_nodes_takes_different_ones() -> None:
    made = plan(gpu_nodes(8, 4, 8), {"a": app(tp=8, pp=2)}, gpu_memory_gb=80)
    assert made.placements[0].nodes == ["node-1", "node-3"]
    made = plan(gpu_nodes(8, 4, 7), {"a": app(tp=8, pp=2)}, gpu_memory_gb=80)
    (problem,) = made.problems
    assert problem == (
        "a: replica 1 of 1 needs 2 nodes with 8 GPU each; "
        "node-1 has 8 of 8 free, node-3 has 7 of 8 free, node-2 has 4 of 8 free"
    )


def test_what_has_no_room_is_named_once_and_the_rest_is_placed() -> None:
    made = plan(gpu_nodes(8), {"a": app(tp=4, replicas=4), "b": app("simulated")}, gpu_memory_gb=80)
    assert [(one.app, one.replica) for one in made.placements] == [("a", 1), ("a", 2), ("b", 1)]
    assert made.problems == ["a: replica 3 of 4 needs 4 GPU; node-1 has 0 of 8 free"]


def test_as_many_replicas_as_there_are_at_least() -> None:
    apps = {"scaled": app(replicas={"min": 1, "max": 9}), "idle": app(replicas={"min": 0, "max": 2})}
    made = plan(gpu_nodes(2), apps, gpu_memory_gb=80)
    assert [(one.app, one.replica, one.nodes) for one in made.placements] == [
        ("scaled", 1, ["node-1"]),
        ("idle", 0, []),
    ]
    lines = made.table().splitlines()
    assert "1 (up to 9)" in lines[1]
    assert "none yet (up to 2)" in lines[2]


@pytest.mark.parametrize(
    ("nodes", "needs", "said"),
    [
        (gpu_nodes(4, 2), [{"GPU": 8.0, "CPU": 8.0}], "needs 8 GPU; node-1 has 4 of 8 free, node-2 has 2 of 8 free"),
        ([Node("n", {"CPU": 4}, {"CPU": 0.5})], [{"CPU": 1}], "needs 1 CPU; n has 0.5 of 4 free"),
        ([Node("n", {"CPU": 4}, {"CPU": 4})], [{"GPU": 1, "CPU": 1}], "needs 1 GPU; n has 0 of 0 free"),
        (
            [Node("n", {"GPU": 8, "CPU": 16}, {"GPU": 7, "CPU": 2})],
            [{"GPU": 8, "CPU": 8}],
            "needs 8 GPU and 8 CPU; n has 7 of 8 GPU and 2 of 16 CPU free",
        ),
        ([], [{"GPU": 8.0, "CPU": 8.0}], "needs 8 GPU and 8 CPU; there are no nodes"),
    ],
)
def test_what_is_missing_on_which_nodes(nodes: list[Node], needs: list[dict[str, float]], said: str) -> None:
    assert missing(nodes, needs) == said


def test_a_large_cluster_is_summed_up() -> None:
    said = missing(gpu_nodes(*range(8), *[0] * 12), [{"GPU": 8.0}])
    assert said
    assert said.startswith("needs 8 GPU; node-8 has 7 of 8 free, node-7")
    assert said.endswith("12 more have no more than that")


def test_there_is_room() -> None:
    assert missing(gpu_nodes(8, 8), [{"GPU": 8.0}] * 2) is None
    # What is left of sums of fractions.
    third = 1 / 3
    assert missing([Node("n", {"CPU": 1}, {"CPU": 1 - third - third})], [{"CPU": third}]) is None


def test_the_table_says_where_and_how_large() -> None:
    apps = {"big": app(tp=8, pp=2, model={"parameters_b": 400}), "sim": app("simulated")}
    lines = plan(gpu_nodes(8, 8), apps, gpu_memory_gb=80).table().splitlines()
    assert lines[0].split() == [
        "app",
        "replica",
        "engine",
        "model",
        "node",
        "resources",
        "weights",
        "GB",
        "KV",
        "GB",
        "(one",
        "request",
        "/",
        "room)",
    ]
    # 16 GPUs x 80 GB x 0.92 - 800 GB of weights.
    assert " ".join(lines[1].split()) == "big 1 vllm m node-1, node-2 2 x (8 GPU, 8 CPU) 800 1.00 / 378"
    assert " ".join(lines[2].split()) == "sim 1 simulated m node-1 1 CPU - -"
    assert [" ".join(line.split()) for line in lines[5:]] == [
        "node-1 8 of 8 GPU, 9 of 64 CPU",
        "node-2 8 of 8 GPU, 8 of 64 CPU",
    ]


def test_nodes_of_a_spec() -> None:
    local = LocalCluster(kind="local", cpus=3, gpus_per_node=2)
    assert nodes_of(local) == [Node("this machine", {"CPU": 3, "GPU": 2}, {"CPU": 3, "GPU": 2})]
    slurm = SlurmCluster(kind="slurm", workers=2, cpus_per_node=4, gpus_per_node=8)
    total = {"CPU": 4, "GPU": 8}
    assert nodes_of(slurm) == [Node("worker-1", total, total), Node("worker-2", total, total)]
    # Nothing is said of its CPUs, so nothing is refused for them.
    attach = nodes_of(AttachCluster(kind="attach", address="auto", nodes=1, gpus_per_node=1))
    made = plan(attach, {"a": app(cpus=1000)}, gpu_memory_gb=80)
    assert not made.problems
    assert "1 of 1 GPU" in made.table()
    assert "inf" not in made.table()


def test_workers_have_labels_and_what_the_user_gives() -> None:
    asked = SlurmOptions(partition="gpu-a", account="me")
    cluster = SlurmCluster(
        kind="slurm", cpus_per_node=4, gpus_per_node=1, slurm=asked, resources={"fast": 1, "account_me": 2}
    )
    (node,) = nodes_of(cluster)
    assert node.total == {"CPU": 4, "GPU": 1, "partition_gpu_a": 10000, "account_me": 2, "fast": 1}
    assert resources_of(cluster, "b,c", "", "high.é") == {
        "partition_b_c": 10000, "qos_high__": 10000, "fast": 1, "account_me": 2
    }  # fmt: skip


def test_an_app_is_pinned_to_nodes_with_its_resources() -> None:
    pinned = app(tp=8, pp=2, resources={"fast": 1, "a": 0.5})
    assert bundles(pinned) == [{"GPU": 8, "CPU": 8, "fast": 1, "a": 0.5}] * 2
    assert bundles(app("simulated", resources={"fast": 1})) == [{"CPU": 1, "fast": 1}]

    plain, fast = {"GPU": 8.0, "CPU": 64.0}, {"GPU": 8.0, "CPU": 64.0, "fast": 1.0}
    nodes = [Node("a", fast, fast), Node("b", plain, plain)]
    apps = {"free": app(tp=8), "pinned": app(tp=8, resources={"fast": 1})}
    made = plan(nodes, apps, gpu_memory_gb=80)
    # Though the other one was named first, and would have taken the first node.
    assert {one.app: one.nodes for one in made.placements} == {"pinned": ["a"], "free": ["b"]}
    assert "8 GPU, 8 CPU, 1 fast" in made.table()
    made = plan(nodes, {"pinned": app(replicas=2, resources={"fast": 1})}, gpu_memory_gb=80)
    assert made.problems == ["pinned: replica 2 of 2 needs 1 fast; a has 0 of 1 free, b has 0 of 0 free"]
    # What the nodes of a cluster have that isn't known yet.
    attach = nodes_of(AttachCluster(kind="attach", address="auto", gpus_per_node=1))
    assert not plan(attach, {"pinned": app(resources={"fast": 1})}, gpu_memory_gb=80).problems


def test_a_large_cluster_is_planned_in_no_time() -> None:
    cluster = SlurmCluster(kind="slurm", workers=1000, cpus_per_node=64, gpus_per_node=8)
    apps = {"small": app(replicas=2000), "large": app(tp=8, pp=2, replicas=250), "middle": app(tp=4, replicas=500)}
    began = time.process_time()
    made = plan(nodes_of(cluster), apps, gpu_memory_gb=80)
    assert not made.problems
    assert len(made.placements) == 2750
    assert not any(node.available["GPU"] for node in made.nodes)
    assert time.process_time() - began < 2


def test_servers_of_others_are_no_app_but_under_apps() -> None:
    main, other = app("openai", base_url="http://a/v1"), app("anthropic")
    assert apps_of(main.engine, main.model, {"b": other}) == {"b": other}
    assert list(apps_of(app().engine, app().model, {"b": other})) == ["m", "b"]
    assert plan(gpu_nodes(8), {}, gpu_memory_gb=80).table() == "Nothing is placed: no app runs on the cluster."


@pytest.mark.parametrize(
    ("args", "stored", "gb"),
    [
        ({}, 2, 16),
        ({"quantization": "fp8"}, 2, 8),
        ({"quantization": "bitsandbytes"}, 2, 4),
        ({"quantization": "w4afp8"}, 2, 4),
        ({"quantization": "compressed-tensors"}, 1, 8),
        # Weights that are stored in four bits don't grow.
        ({"quantization": "fp8"}, 0.5, 4),
        ({"dtype": "float32"}, 2, 32),
        ({"dtype": "bfloat16"}, 4, 16),
        ({"dtype": "auto"}, 4, 32),
        ({"dtype": "bfloat16"}, 1, 8),
    ],
)
def test_weights_have_the_type_that_is_asked_for(args: dict[str, Any], stored: float, gb: float) -> None:
    spec = app(args=args, model={"bytes_per_parameter": stored})
    assert isinstance(spec.engine, VllmEngine)
    assert weights_gb(spec.engine, spec.model) == gb


@pytest.mark.parametrize(
    ("args", "share"),
    [
        ({}, 1), ({"kv_cache_dtype": "fp8_e4m3"}, 0.5), ({"kv-cache-dtype": "nvfp4"}, 0.25), ({"dtype": "float32"}, 2),
        ({"dtype": "float32", "kv_cache_dtype": "bfloat16"}, 1), ({"kv_cache_dtype": None}, 1),
    ],
)  # fmt: skip
def test_the_kv_cache_has_its_own_type(args: dict[str, Any], share: float) -> None:
    spec = app(args=args)
    assert isinstance(spec.engine, VllmEngine)
    assert kv_bytes_per_token(spec.engine, spec.model) == share * 1e6


def test_memory_of_a_replica() -> None:
    spec = app(tp=2, args={"gpu_memory_utilization": 0.5, "max_model_len": "2k", "cpu_offload_gb": 1}, kv_cache_gb=3)
    assert isinstance(spec.engine, VllmEngine)
    memory = memory_of(spec.engine, spec.model, cpu=False, gpu_memory_gb=80)
    assert (memory.weights_gb, memory.request_gb, memory.room_gb, memory.kv_gb) == (16, 2, 82, 66)
    assert memory_of(spec.engine, spec.model, cpu=True, gpu_memory_gb=80).kv_gb == 3
    experts = app(tp=2, args={"data_parallel_size": 4, "enable_expert_parallel": True, "gpu_memory_utilization": 0.5})
    assert isinstance(experts.engine, VllmEngine)
    assert memory_of(experts.engine, experts.model, cpu=False, gpu_memory_gb=80).room_gb == 8 * 40
    unknown = app(model={"parameters_b": None, "kv_bytes_per_token": None})
    assert isinstance(unknown.engine, VllmEngine)
    assert memory_of(unknown.engine, unknown.model, cpu=False, gpu_memory_gb=80).kv_gb is None


def test_sizes_are_read_as_the_engine_reads_them() -> None:
    assert [number(given) for given in (8, "8", 0.9, "32k", "32K", "1.5k")] == [8, 8, 0.9, 32000, 32768, 1500]
    assert [number(given) for given in ("auto", -1, None, True, "abc", "")] == [None] * 6
    spec = app(args={"max-model-len": "auto"})
    assert isinstance(spec.engine, VllmEngine)
    assert context_of(spec.engine, spec.model) is None
    # The engine's own argument wins over the model's.
    both = app(args={"max_model_len": 7}, model={"args": {"max-model-len": 5, "tensor-parallel-size": 2}})
    assert isinstance(both.engine, VllmEngine)
    assert (context_of(both.engine, both.model), parallel_of(both.engine, both.model).tensor) == (7, 2)
