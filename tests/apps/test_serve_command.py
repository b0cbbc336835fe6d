"""The command line that an engine is started with."""

from __future__ import annotations

import json

from matrix.apps import own, sglang
from matrix.apps.vllm import engine_environment, launch
from matrix.compose import compose_spec
from matrix.models.source import ResolvedModel
from matrix.spec import AnthropicEngine, ModelSpec, RunSpec, SglangEngine, VllmEngine


def command_of(spec: RunSpec, *, cpu: bool) -> list[str]:
    assert isinstance(spec.engine, VllmEngine)
    source = ResolvedModel("org/x", "abc", None, "org/x")
    return launch(spec.engine, spec.model, source, "key", cpu=cpu, nodes=1).commands[0]


def value(command: list[str], flag: str) -> str:
    return command[command.index(flag) + 1]


def test_the_model_says_how_it_is_served() -> None:
    command = command_of(compose_spec(["tracker=none", "cluster=slurm", "model=llama70b"]), cpu=False)
    assert value(command, "--tensor-parallel-size") == "4"
    assert value(command, "--served-model-name") == "llama70b"
    assert value(command, "--tool-call-parser") == "llama3_json"
    assert value(command, "--revision") == "abc"
    assert "--enable-auto-tool-choice" in command
    assert "--enforce-eager" not in command


def test_engine_arguments_win_by_their_own_names() -> None:
    overrides = [
        "tracker=none", "engine.args.max-num-seqs=7", "engine.args.enforce_eager=null", "engine.args.dtype=bfloat16",
        "engine.args.enable_prefix_caching=false", "engine.args.hf_overrides={rope_theta: 1}",
    ]  # fmt: skip
    command = command_of(compose_spec(overrides), cpu=True)
    assert value(command, "--max-num-seqs") == "7"
    assert value(command, "--dtype") == "bfloat16"
    assert "--enforce-eager" not in command
    assert "--no-enable-prefix-caching" in command
    assert value(command, "--hf-overrides") == '{"rope_theta": 1}'


def test_the_environment_of_the_engine() -> None:
    engine = VllmEngine(kind="vllm", kv_cache_gb=2.5, env={"A": "b"})
    environment = engine_environment(engine, "secret", cpu=True)
    assert environment["VLLM_API_KEY"] == "secret"
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "2.5"
    assert environment["A"] == "b"


def test_nodes_of_a_replica_find_each_other_by_vllms_own_arguments() -> None:
    spec = compose_spec(["tracker=none", "cluster=slurm", "cluster.workers=2", "model=llama405b"])
    assert isinstance(spec.engine, VllmEngine)
    source = ResolvedModel("org/x", "abc", None, "org/x")
    made = launch(spec.engine, spec.model, source, "key", cpu=False, nodes=2)
    head, other = made.commands
    assert (value(head, "--tensor-parallel-size"), value(head, "--pipeline-parallel-size")) == ("8", "2")
    assert [value(command, "--node-rank") for command in (head, other)] == ["0", "1"]
    for command in (head, other):
        assert (value(command, "--master-addr"), value(command, "--master-port")) == ("{head}", "{head_port}")
        assert value(command, "--nnodes") == "2"
    assert "--headless" in other
    assert "--port" not in other
    assert "key" not in " ".join(head + other)
    assert "key" not in repr(made)


def test_sglang_gets_the_same_and_its_key_by_a_file() -> None:
    overrides = ["tracker=none", "cluster=slurm", "cluster.workers=2", "model=llama405b", "engine=sglang"]
    overrides += ["engine.python=/bin/sh", "engine.args.mem_fraction_static=0.8"]
    spec = compose_spec(overrides)
    assert isinstance(spec.engine, SglangEngine)
    source = ResolvedModel("org/x", "abc", None, "org/x")
    made = sglang.launch(spec.engine, spec.model, source, "the key", cpu=False, nodes=2)
    head, other = made.commands
    assert head[:3] == ["/bin/sh", "-m", "sglang.launch_server"]
    assert value(head, "--model-path") == "org/x"
    assert (value(head, "--tp-size"), value(head, "--pp-size")) == ("8", "2")
    assert value(head, "--mem-fraction-static") == "0.8"
    assert value(head, "--dist-init-addr") == "{head}:{head_port}"
    assert [value(command, "--node-rank") for command in (head, other)] == ["0", "1"]
    assert value(head, "--config") == "{secrets}"
    assert made.secrets == '{"api-key": "the key"}'
    assert "the key" not in " ".join(head + other)


def test_vllms_names_become_sglangs_and_false_is_left_out() -> None:
    overrides = ["tracker=none", "cluster=slurm", "model=llama70b", "engine=sglang", "engine.python=/bin/sh"]
    spec = compose_spec([*overrides, "engine.args.enable_mixed_chunk=true", "engine.args.disable_radix_cache=false"])
    assert isinstance(spec.engine, SglangEngine)
    (command,) = sglang.launch(
        spec.engine, spec.model, ResolvedModel("org/x", None, None, "org/x"), "k", cpu=False, nodes=1
    ).commands
    assert value(command, "--tool-call-parser") == "llama3"
    assert "--enable-mixed-chunk" in command
    assert not any("radix" in word for word in command)


def test_a_gateway_gets_the_keys_of_who_deploys_it(monkeypatch) -> None:
    monkeypatch.setenv("ONE", "1")
    monkeypatch.setenv("TWO", "2")
    engine = AnthropicEngine(kind="anthropic", api_key_env=["ONE", "TWO", "NONE"])
    made = own.launch(engine, ModelSpec(name="claude"), "the key")
    assert {name: made.environment.get(name) for name in ("ONE", "TWO", "NONE")} == {
        "ONE": "1",
        "TWO": "2",
        "NONE": None,
    }
    assert "'1'" not in repr(made)
    assert json.loads(made.environment["MATRIX_SERVING"])["engine"]["api_key_env"] == ["ONE", "TWO", "NONE"]
    assert not made.counts_tokens
