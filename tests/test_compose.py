"""Composition: every option of every group, every problem at once, and the default config under version control."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from matrix.compose import CONFIG_DIR, check_sweep, compose_spec
from matrix.errors import ConfigError
from matrix.spec import OpenAIEngine, RunSpec, SlurmCluster
from tests.command import ROOT, environment, run

GROUPS = ("cluster", "engine", "sampling", "dataset", "pipeline", "agents", "tracker", "recipes", "model")
API = ["model=api", "model.name=any"]
KEYS = ("AZURE_OPENAI_API_KEY", "ANTHROPIC_API_KEY", "LLAMA_API_KEY", "GEMINI_API_KEY")
# What an option can't do without.
NEEDS = {
    "dataset=jsonl": ["dataset.path=package:matrix.data/samples/questions.jsonl"],
    "dataset=hub": ["dataset.hub=org/name"],
    "pipeline=inference": ["dataset.path=package:matrix.data/samples/questions.jsonl"],
    "pipeline=generate": ["dataset.path=package:matrix.data/samples/questions.jsonl"],
    "pipeline=mcq": ["dataset.path=package:matrix.data/samples/questions.jsonl"],
    "agents=custom": [f"agents.file={ROOT}/tests/agents/writer.py", "agents.order=[writer]", "agents.repeat=false"],
    "engine=openai": ["engine.api_key_env=null"],
    "engine=azure": ["engine.base_url=https://resource.openai.azure.com", *API],
    "engine=anthropic": API,
    "engine=llama_api": API,
    "engine=gemini": API,
    "engine=bedrock": ["engine.region=us-west-2", *API],
    "engine=sagemaker": ["engine.region=us-west-2", "engine.endpoint=mine", *API],
    "engine=simulated": API,
    "engine=container": ["engine.images.host=host"],
    "recipes=tau2_retail": ["agents.roles.environment.options.data=package:matrix.agents.teams.tau2/domains/library"],
    "engine=sglang": ["engine.python=/bin/sh", "cluster=slurm"],
    "model=sandbox": ["engine=sandbox"],
    "pipeline=execute": ["dataset.path=package:matrix.data/samples/questions.jsonl"],
    "model=api": ["model.name=any", "engine=openai", "engine.api_key_env=null"],
}
SERVER = ("engine=openai", "engine.api_key_env=null")
OPTIONS = [f"{group}={file.stem}" for group in GROUPS for file in sorted(Path(CONFIG_DIR, group).glob("*.yaml"))]


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nodes of `cluster=slurm` are those that a machine without Slurm assumes."""
    monkeypatch.setenv("SLURM_CONF", "/dev/null")


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        compose_spec(["tracker=none", *overrides])
    return [str(problem) for problem in raised.value.problems]


def test_the_groups_are_where_they_should_be() -> None:
    assert {option.partition("=")[0] for option in OPTIONS} == set(GROUPS)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_validates(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in KEYS:
        monkeypatch.setenv(key, "secret")
    big = ["cluster=slurm", "cluster.workers=3"] if option.startswith(("model=", "recipes=")) else []
    spec = compose_spec([*big, option, *NEEDS.get(option, [])])
    assert isinstance(spec, RunSpec)


def test_a_comment_stands_above_every_field_of_every_file() -> None:
    for file in Path(CONFIG_DIR).rglob("*.yaml"):
        lines = file.read_text().splitlines()
        assert lines[0].startswith("#"), f"{file}: the first line says what the file is"
        if "hydra" in file.parts:
            continue
        for above, line in itertools.pairwise(lines):
            is_field = re.match(r"[a-z_]+: *\S", line) and not line.startswith("kind:")
            assert not is_field or above.startswith("#"), f"{file}: no comment above '{line}'"


def test_the_composed_default_config_is_up_to_date() -> None:
    composed = subprocess.run(
        [sys.executable, "-m", "matrix.compose"], env=environment(), capture_output=True, text=True, check=True
    ).stdout
    assert (ROOT / "docs" / "default_config.yaml").read_text() == composed, "run `make config` and look at the change"


def test_a_group_without_an_option() -> None:
    """Hydra itself knows none but what stands so in conf/config.yaml."""
    assert problems("engine=null", "trials=0") == [
        "engine=null: no such option of 'engine' (did you mean vllm?)",
        "trials=0: should be greater than 0",
    ]
    said = problems("apps.judge.model=llama8b", "apps.judge.engine=null")
    assert said[0] == "apps.judge.engine=null: no such option of 'engine' (did you mean vllm?)"
    assert not compose_spec(["tracker=none", "apps.code.engine=null"]).apps
    images = compose_spec(["tracker=none", "apps.box.engine=container", "apps.box.engine.images={here: host}"])
    assert images.apps["box"].engine.images == {"here": "host"}
    assert "pipeline.scorers.0.app=code: no such app" in problems("pipeline=humaneval", "apps.code.engine=null")[0]


def test_every_problem_is_said_at_once() -> None:
    said = problems(
        "model=lama70b", "sampling.temperature=hot", "enigne=vllm", "dataset.path=nope.jsonl", "trials=0",
        "workload.concurency=3", "+sampling.temprature=1", "cluster=slurm",
    )  # fmt: skip
    assert set(said) == {
        "model=lama70b: no such option of 'model' (did you mean llama70b?)",
        "sampling.temperature=hot: should be a valid number, unable to parse string as a number",
        "enigne=vllm: no such key (did you mean engine?)",
        said[[line.startswith("dataset.path=nope.jsonl: no such file") for line in said].index(True)],
        "trials=0: should be greater than 0",
        "workload.concurency=3: no such key (did you mean workload.concurrency?)",
        "sampling.temprature=1: no such key (did you mean temperature?)",
    }


@pytest.mark.parametrize(
    ("overrides", "key", "hint"),
    [
        (["cluster=slurm", "cluster.gpus_per_node=4", "model=llama8b", "model.tensor_parallel=8"], "tensor_parallel=8", "at most 4"),
        (["cluster=slurm", "model=llama405b"], "model.pipeline_parallel=2", "cluster.workers=2"),
        (["cluster=slurm", "model=llama70b", "model.tensor_parallel=1"], "model.name=llama70b", "raise model.tensor_parallel"),
        (["cluster.gpus_per_node=0", "model=llama70b"], "model.tensor_parallel=4", "cluster=slurm"),
        (["cluster.gpus_per_node=0", "model.parameters_b=700"], "model.name=smollm2", "a smaller model"),
        (["engine=openai", "engine.api_key_env=NOT_THERE"], "engine.api_key_env=NOT_THERE", "export NOT_THERE"),
        ([*SERVER, "engine.base_url=localhost:8000/v1"], "engine.base_url: localhost:8000/v1", "http://HOST:8000/v1"),
        ([*SERVER, "engine.base_url=[http://a/v1,ftp://b/v1,http:///v1]"], "base_url: ftp://b/v1, http:///v1: no http", ""),
        ([*SERVER, "engine.base_url=[]"], "engine.base_url: []", "a list of them"),
        ([*SERVER, "engine.base_url=[http://a/v1,http://b/v1,http://a/v1/]"], "base_url: http://a/v1: listed more", ""),
        (["cluster.kind=k8s"], "cluster.kind=k8s", "local"),
        (["dataset=jsonl"], "dataset.path", "dataset.path=VALUE"),
        (["model.source=./nope"], "model.source=./nope", ""),
        (["model.source=package:nope"], "model.source=package:nope", "pip install"),
        (["cluster=attach", "cluster.token_path=nope"], "cluster.token_path=nope", "token file"),
        (["name=''"], "name", "at least 1"),
        (["sampling.temperature"], "command line", "key=value"),
        (["pipeline.text_key=question"], "pipeline", "pipeline.prompt to []"),
        (["pipeline.scorers.0.reference='{{'"], "pipeline.scorers.0.reference", ""),
        (["'foo"], "command line", "quote"),
    ],
)  # fmt: skip
def test_a_problem_names_the_key_the_value_and_the_way_out(overrides: list[str], key: str, hint: str) -> None:
    (said,) = problems(*overrides)
    assert key in said
    assert hint in said


def test_an_engine_argument_needs_no_plus() -> None:
    spec = compose_spec(["engine.args.max_num_seqs=3", "engine.env.A=b", "sampling.extra.ignore_eos=true"])
    assert spec.engine.model_dump()["args"] == {"max_num_seqs": 3}
    assert spec.sampling.extra == {"ignore_eos": True}


def test_nor_does_a_resource_or_a_parameter_of_sbatch() -> None:
    pins = ["engine.resources.a=1", "workload.resources.a=0.5", "workload.drivers=2"]
    spec = compose_spec(["cluster=slurm", "cluster.resources.a=1", "cluster.slurm.args.constraint=h100", *pins])
    assert isinstance(spec.cluster, SlurmCluster)
    assert (spec.cluster.resources, spec.cluster.slurm.args) == ({"a": 1}, {"constraint": "h100"})
    assert (spec.engine.resources, spec.workload.resources) == ({"a": 1}, {"a": 0.5})


def test_an_engine_is_one_server_or_several() -> None:
    given = {"http://a:1/v1": ["http://a:1/v1"], "[http://a:1/v1,https://b/v1/]": ["http://a:1/v1", "https://b/v1"]}
    for typed, urls in given.items():
        engine = compose_spec([*SERVER, f"engine.base_url={typed}"]).engine
        assert isinstance(engine, OpenAIEngine)
        assert engine.urls == urls


def test_a_sweep_is_checked_as_a_whole() -> None:
    check_sweep(["tracker=none", "sampling.temperature=0,0.5", "model=smollm2"])
    with pytest.raises(ConfigError) as raised:
        check_sweep(["tracker=none", "sampling.temperature=0,hot", "model=smollm2,lama8b"])
    said = [str(problem) for problem in raised.value.problems]
    assert len(said) == 2
    assert any("sampling.temperature=hot" in line for line in said)
    assert any("did you mean llama8b" in line for line in said)


def test_a_spec_is_frozen_and_a_pipeline_brings_its_data_set() -> None:
    spec = compose_spec(["pipeline=gsm8k", "dataset.limit=3"])
    assert (spec.dataset.hub, spec.dataset.limit, spec.sampling.temperature) == ("openai/gsm8k", 3, 0)
    with pytest.raises(ValueError, match="frozen"):
        spec.trials = 2  # type: ignore[misc]


def test_recipes_of_a_users_own_folder(tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /pipeline: gsm8k\n  - override /sampling: reasoning\ntrials: 3\n"
    )
    done = run(tmp_path, f"hydra.searchpath=[file://{tmp_path}]", "recipes=mine", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    assert "trials: 3" in done.stdout
    assert "hub: openai/gsm8k" in done.stdout
    wrong = run(tmp_path, f"hydra.searchpath=[file://{tmp_path}]", "recipes=mien")
    assert wrong.returncode == 2
    assert "did you mean mine?" in wrong.stderr


def test_a_key_that_has_to_be_given_is_not_taken_for_an_unknown_one() -> None:
    found = problems("pipeline=inference", "dataset.path=nowhere.jsonl", "sampling.temprature=1")
    assert len(found) == 2
    assert "no such file" in "".join(found)
    assert "sampling.temperature" in "".join(found)
