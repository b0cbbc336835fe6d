"""The command line that an engine is started with."""

from __future__ import annotations

from matrix.apps.vllm import engine_environment, serve_command
from matrix.compose import compose_spec
from matrix.spec import RunSpec, VllmEngine


def command_of(spec: RunSpec, *, cpu: bool) -> list[str]:
    assert isinstance(spec.engine, VllmEngine)
    return serve_command(spec.model, spec.engine, "/models/x", "abc", cpu=cpu)


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
