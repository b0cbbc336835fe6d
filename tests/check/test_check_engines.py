"""Rules on engines: what is installed, credentials, files, and the same for every app."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from matrix.check.problems import is_installed
from tests.check.specs import API, MODEL, SLURM, on_gpus, problems

KEYS = ("AZURE_OPENAI_API_KEY", "ANTHROPIC_API_KEY", "LLAMA_API_KEY", "GEMINI_API_KEY", "OPENAI_API_KEY", "A", "B")
AZURE = {"kind": "azure", "base_url": "https://r.openai.azure.com", "api_version": "v"}


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ({"kind": "anthropic"}, "engine.api_key_env=ANTHROPIC_API_KEY: this environment variable is not set (export ANTHROPIC_API_KEY=..."),
        ({"kind": "llama_api", "api_key_env": ["A"]}, "engine.api_key_env=A: this environment variable"),
        ({"kind": "anthropic", "api_key_env": []}, "engine.api_key_env=[]: names no environment variable"),
        ({"kind": "gemini"}, "engine.api_key_env=GEMINI_API_KEY"),
        ({"kind": "gemini", "api_key_env": None}, "engine.project=PROJECT"),
        (AZURE, "engine.api_key_env=AZURE_OPENAI_API_KEY"),
        (AZURE | {"api_key_env": None}, "engine.token_file=FILE"),
        (AZURE | {"token_file": "nope"}, "engine.token_file=nope: no such file"),
        (AZURE | {"api_key_env": None, "base_url": "r.openai.azure.com"}, "engine.base_url: r.openai.azure.com: no http or https URL"),
        ({"kind": "bedrock", "region": "r", "base_url": "ftp://a"}, "engine.base_url: ftp://a: no http"),
        ({"kind": "simulated", "outputs": "nope.jsonl"}, "engine.outputs=nope.jsonl: no such file"),
        ({"kind": "openai", "base_url": "http://a/v1"}, "engine.api_key_env=null if the server asks for none"),
    ],
)  # fmt: skip
def test_what_an_engine_lacks_is_named(engine: dict[str, Any], said: str) -> None:
    (problem,) = problems(engine=engine, model=API)
    assert said in problem


def test_the_same_for_an_app_by_its_own_key() -> None:
    (problem,) = problems(apps={"judge": {"engine": {"kind": "anthropic"}, "model": API}})
    assert problem.startswith("apps.judge.engine.api_key_env=ANTHROPIC_API_KEY: this environment")
    assert "or apps.judge.engine.api_key_env=NAME" in problem


def test_every_key_of_a_list_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A", "x")
    (problem,) = problems(engine={"kind": "anthropic", "api_key_env": ["A", "B"]}, model=API)
    assert problem.startswith("engine.api_key_env=B:")


def test_credentials_that_need_no_key(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("t")
    for engine in (
        {"kind": "gemini", "project": "p"},
        AZURE | {"token_file": str(token)},
        {"kind": "bedrock", "region": "r"},
        {"kind": "sagemaker", "region": "r", "endpoint": "e"},
        {"kind": "simulated"},
    ):
        assert problems(engine=engine, model=API) == []


def test_a_model_that_is_loaded_has_to_be_known() -> None:
    said = problems(cluster=SLURM, engine={"kind": "vllm"}, model=API)
    assert [line.partition(":")[0] for line in said] == ["model.source", "model.parameters_b", "model.context_length"]
    assert "model.source=VALUE: org/name on the hub" in said[0]
    (app,) = problems(cluster=SLURM, apps={"a": {"engine": {"kind": "vllm"}, "model": MODEL | {"source": None}}})
    assert app.startswith("apps.a.model.source: is missing")
    assert "apps.a.model.source=VALUE" in app


def test_sglang_comes_from_here_or_from_its_own_environment(tmp_path: Path) -> None:
    model, engine = MODEL, {"kind": "sglang"}
    missing = problems(cluster=SLURM, engine=engine, model=model)
    assert is_installed("sglang") is (not missing)
    assert all("engine.python=PATH/bin/python" in line for line in missing)
    (said,) = problems(cluster=SLURM, engine=engine | {"python": str(tmp_path / "python")}, model=model)
    assert "engine.python=" in said
    assert "no such program" in said
    assert problems(cluster=SLURM, engine=engine | {"python": sys.executable}, model=model) == []


@pytest.mark.parametrize(
    ("engine", "part", "package"),
    [
        ({"kind": "anthropic"}, "anthropic", "matrix-llm[gateways]"),
        ({"kind": "llama_api"}, "llama_api_client", "matrix-llm[gateways]"),
        ({"kind": "gemini"}, "google.genai", "matrix-llm[gateways]"),
        ({"kind": "gemini"}, "google", "matrix-llm[gateways]"),
        ({"kind": "bedrock", "region": "r"}, "boto3", "matrix-llm[gateways]"),
        (AZURE, "openai", "matrix-llm[gateways]"),
        (AZURE, "uvicorn", "matrix-llm[gateways]"),
        ({"kind": "simulated"}, "httptools", "matrix-llm[serving]"),
        ({"kind": "simulated"}, "ray", "matrix-llm[serving]"),
        ({"kind": "vllm"}, "vllm", "matrix-llm[vllm]"),
    ],
)  # fmt: skip
def test_what_is_not_installed(
    engine: dict[str, Any], part: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib.util import find_spec

    for name in KEYS:
        monkeypatch.setenv(name, "x")
    found = problems(cluster=SLURM, engine=engine, model=MODEL)
    assert found == []
    monkeypatch.setattr("matrix.check.problems.find_spec", lambda name: None if name == part else find_spec(name))
    (said,) = problems(cluster=SLURM, engine=engine, model=MODEL)
    assert said.startswith(f"engine.kind={engine['kind']}: ")
    assert f"pip install '{package}'" in said


def test_a_server_that_is_there_needs_no_ray_but_as_an_app(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.util import find_spec

    monkeypatch.setattr("matrix.check.problems.find_spec", lambda name: None if name == "ray" else find_spec(name))
    server = {"kind": "openai", "base_url": "http://a/v1", "api_key_env": None}
    assert problems(engine=server, model=API) == []
    (said,) = problems(engine=server, model=API, apps={"a": {"engine": server, "model": API}})
    assert said.startswith("apps.a.engine.kind=openai: Ray is not installed")


@pytest.mark.parametrize("name", ["a b", "", "-a", "a/b", "ä", ".a"])
def test_names_that_an_app_can_not_have(name: str) -> None:
    (said,) = problems(apps={name: {"engine": {"kind": "simulated"}, "model": API}})
    assert said.startswith(f"apps.{name}: an app's name is made of letters, digits, '-', '_' and '.'")


def test_an_app_is_not_called_like_the_first_one() -> None:
    simulated = {"engine": {"kind": "simulated"}, "model": API}
    assert problems(apps={"Judge-1.b_c": simulated, "other": simulated}, cluster=SLURM) == []
    (said,) = problems(**simulated, apps={"api": simulated}, cluster=SLURM)
    assert said.startswith("apps.api: is also the name of the app that engine and model describe")


def test_type_errors_of_an_app_are_said_by_the_keys_as_typed() -> None:
    engine = {"kind": "vllm", "kv_cache_gbb": 1, "replicas": {"min": 0, "mx": 3}, "device": "tpu"}
    said = problems(apps={"judge": {"engine": engine, "model": MODEL | {"parameter_b": 3}}})
    assert "apps.judge.engine.kv_cache_gbb=1: no such key (did you mean kv_cache_gb?)" in said
    assert "apps.judge.engine.replicas.mx=3: no such key (did you mean max?)" in said
    assert "apps.judge.model.parameter_b=3: no such key (did you mean parameters_b?)" in said
    assert any(line.startswith("apps.judge.engine.device=tpu: should be 'auto'") for line in said)
    (kind,) = problems(apps={"judge": {"engine": {"kind": "vlm"}, "model": API}})
    assert kind.startswith("apps.judge.engine.kind=vlm: no such kind (one of: vllm, sglang, ")
    (absent,) = problems(apps={"judge": {"engine": {"kind": "simulated"}}})
    assert absent.startswith("apps.judge.model: is missing")


def test_a_good_config_has_no_problems() -> None:
    assert on_gpus() == []
