"""Rules on sandboxes and on what runs programs: limits, languages, this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from matrix.check.sections import check_asked
from matrix.check.services import check_host, check_service
from matrix.compose import CONFIG_DIR, compose_config, compose_spec
from matrix.spec import AppSpec, ContainerEngine, LocalCluster, SandboxEngine, SlurmCluster
from tests.check.specs import SLURM, problems

ROWS = "dataset.path=package:matrix.data/samples/questions.jsonl"
EXECUTE = {"kind": "execute", "name": "execute"}


def app(**engine: Any) -> dict[str, Any]:
    return {"code": {"engine": {"kind": "sandbox", **engine}}}


def test_an_app_needs_no_more_than_its_engine() -> None:
    spec = compose_spec(["tracker=none", "apps.code.engine=sandbox", "apps.code.engine.languages.lua='lua main.lua'"])
    engine = spec.apps["code"].engine
    assert isinstance(engine, SandboxEngine)
    assert engine.languages["lua"] == "lua main.lua"
    assert spec.apps["code"].model.name == "sandbox"
    # So that a run of pipeline=execute uses an app that is deployed already.
    assert spec.apps["code"].model == compose_spec(["tracker=none", "pipeline=execute", ROWS]).model


def test_the_options_file_says_what_the_spec_does() -> None:
    given = compose_config(["engine=sandbox"]).engine
    engine = AppSpec.model_validate({"engine": {"kind": "sandbox"}}).engine.model_dump()
    differ = {name for name, value in engine.items() if name in given and given[name] != value}
    assert differ == {"replicas", "start_timeout_s"}
    assert set(given) == set(engine), CONFIG_DIR


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ({"memory_mb": 9000}, "engine.memory_mb=9000: is more than apps.code.engine.max_memory_mb=4096"),
        ({"timeout_s": 400}, "engine.timeout_s=400.0: is more than apps.code.engine.max_timeout_s=300"),
        ({"languages": {"rust": "rustc"}}, "engine.languages.rust=rustc: names no file main.ENDING"),
        ({"preload": ["a b"]}, "engine.preload=a b: is no name of a module"),
        ({"python": "/nowhere/python"}, "engine.python=/nowhere/python: no such program"),
        ({"root": "/nowhere"}, "engine.root=/nowhere: no such folder"),
    ],
)
def test_what_is_wrong_with_a_sandbox(engine: dict[str, Any], said: str) -> None:
    (problem,) = problems(apps=app(**engine))
    assert problem.startswith("apps.code.")
    assert said in problem


def test_a_machine_that_cannot_isolate_is_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (problem,) = problems(apps=app())
    assert problem.startswith("apps.code.engine.kind=sandbox: ")
    assert "bubblewrap" in problem
    # Elsewhere there may be what this one lacks.
    assert problems(apps=app(), cluster=SLURM) == []


def test_programs_go_to_a_sandbox() -> None:
    (problem,) = problems(pipeline=EXECUTE, engine={"kind": "simulated"}, model={"name": "m"})
    assert problem.startswith("engine.kind=simulated: runs no programs (engine=sandbox model=sandbox")
    assert problems(pipeline=EXECUTE, engine={"kind": "sandbox"}, model={"name": "sandbox"}) == []
    (template,) = problems(pipeline=EXECUTE | {"prompt_template": "f({})"})
    assert template.startswith("pipeline.prompt_template=f({}): names no column")


def test_a_sandbox_answers_no_prompts() -> None:
    spec = compose_spec(["tracker=none", "engine=sandbox", "model=sandbox"])
    (problem,) = check_asked(spec)
    assert str(problem).startswith("engine.kind=sandbox: serves no model, and pipeline=sample_qa asks one")
    assert check_asked(compose_spec(["tracker=none", "pipeline=execute", ROWS])) == []


def test_containers_without_an_image_or_with_more_than_there_is() -> None:
    engine = ContainerEngine(kind="container", any_image=True, grpc=True, mounts={"data": "/srv/data"})
    keys = [problem.key for problem in check_service("apps.box.", engine)]
    assert keys == ["apps.box.engine.any_image", "apps.box.engine.grpc", "apps.box.engine.mounts"]
    assert [problem.key for problem in check_service("", ContainerEngine(kind="container"))] == ["engine.images"]


def test_images_are_looked_for_before_anything_starts(tmp_path: Path) -> None:
    images = {"here": "host", "there": str(tmp_path), "gone": "/nowhere/image", "*": "/nowhere/{name}"}
    engine = ContainerEngine(kind="container", images=images)
    (problem,) = check_host("apps.box.", LocalCluster(kind="local"), engine)
    assert (problem.key, problem.value) == ("apps.box.engine.images.gone", "/nowhere/image")
    assert not check_host("apps.box.", SlurmCluster(kind="slurm"), engine), "it is another machine's"


def test_programs_of_answers_need_a_sandbox_that_gives_them_what_they_ask_for() -> None:
    def said(apps: dict[str, Any], **scorer: Any) -> list[str]:
        code = {"kind": "code", "reference": "{{ test }}", **scorer}
        pipeline = {"kind": "generate", "name": "p", "text_key": "x", "scorers": [code]}
        return problems(pipeline=pipeline, apps=apps)

    assert said(app(), timeout_s=300, memory_mb=4096) == []
    (missing,) = said({})
    assert missing.startswith("pipeline.scorers.0.app=code: no such app (apps.code.engine=sandbox makes one")
    (other,) = said({"code": {"engine": {"kind": "simulated"}, "model": {"name": "m2"}}})
    assert other.startswith("pipeline.scorers.0.app=code: engine=simulated runs no programs")
    more = said(app(), timeout_s=301, memory_mb=5000)
    assert more[0].startswith("pipeline.scorers.0.timeout_s=301.0: is more than apps.code.engine.max_timeout_s=300")
    assert more[1].startswith("pipeline.scorers.0.memory_mb=5000: is more than apps.code.engine.max_memory_mb=4096")
    (template,) = said(app(), context="{{")
    assert template.startswith("pipeline.scorers.0.context")


def test_a_pipeline_brings_its_sandbox() -> None:
    rows = ["tracker=none", "pipeline=humaneval", "dataset=humaneval_sample"]
    for more in ([], ["apps.code.engine=sandbox"]):
        spec = compose_spec([*rows, *more, "apps.code.engine.memory_mb=300"])
        engine = spec.apps["code"].engine
        assert isinstance(engine, SandboxEngine)
        assert engine.memory_mb == 300
        assert spec.asked_apps == ["smollm2", "code"]
    spec = compose_spec([*rows, "cluster.cpus=4", "apps.mine.engine=sandbox", "pipeline.scorers.0.app=mine"])
    assert spec.asked_apps == ["smollm2", "mine"]
