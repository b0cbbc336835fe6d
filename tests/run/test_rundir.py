"""A run dir that is given again: what makes it the same run."""

from __future__ import annotations

from pathlib import Path

import pytest

from matrix.compose import compose_spec
from matrix.errors import ConfigError, DataError
from matrix.run.rundir import RunDir
from matrix.spec import RunSpec


def spec(servers: str) -> RunSpec:
    return compose_spec(["engine=openai", f"engine.base_url={servers}", "engine.api_key_env=null", "tracker=none"])


def test_other_servers_are_no_other_run(tmp_path: Path) -> None:
    RunDir(tmp_path / "run").open(spec("http://a/v1"))
    (tmp_path / "run" / "env.json").write_text('{"run_id": "one"}')
    for servers in ("[http://a/v1,http://b/v1]", "[http://c:1/v1]", "http://a/v1"):
        again = RunDir(tmp_path / "run")
        again.open(spec(servers))
        assert again.resumed


def test_half_a_spec_is_as_good_as_none(tmp_path: Path) -> None:
    """A kill left it, or a full disk."""
    (tmp_path / "spec.yaml.tmp").write_text("name: x\nsee")
    run_dir = RunDir(tmp_path)
    run_dir.open(spec("http://a/v1"))
    assert not run_dir.resumed
    assert [file.name for file in tmp_path.iterdir()] == ["spec.yaml"]


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.tmp").touch()
    with pytest.raises(DataError, match="no run dir"):
        RunDir(tmp_path).open(spec("http://a/v1"))


def test_a_first_start_that_failed_binds_nobody(tmp_path: Path) -> None:
    """It ended before data and model were known, so that there are no rows."""
    RunDir(tmp_path).open(compose_spec(["engine=openai", "engine.api_key_env=null", "seed=1"]))
    again = RunDir(tmp_path)
    again.open(compose_spec(["engine=openai", "engine.api_key_env=null", "seed=2"]))
    assert not again.resumed
    assert "seed: 2" in (tmp_path / "spec.yaml").read_text()


@pytest.mark.parametrize(("file", "text"), [("env.json", "{"), ("spec.yaml", "a: ["), ("spec.yaml", "text")])
def test_a_damaged_run_dir_is_said(tmp_path: Path, file: str, text: str) -> None:
    RunDir(tmp_path).open(spec("http://a/v1"))
    (tmp_path / "env.json").write_text('{"run_id": "one"}')
    (tmp_path / file).write_text(text)
    with pytest.raises(DataError, match=f"{file} is damaged"):
        RunDir(tmp_path).open(spec("http://a/v1"))


def test_a_team_keeps_to_its_apps_its_roles_and_its_code(tmp_path: Path) -> None:
    code = "async def judge(state, tools): return 'yes'"
    file = tmp_path / "team.py"
    file.write_text(code)
    asked = [
        "tracker=none", "agents=custom", "agents.order=[judge]", "agents.repeat=false", "agents.roles.judge.app=big",
        "apps.big.engine=simulated", "apps.big.model=api", "apps.big.model.name=b", "engine=simulated",
        "agents.tools.python={kind: sandbox}", "apps.code.engine=sandbox", "cluster.cpus=4",
    ]  # fmt: skip

    def spec(*more: str, of: Path = file) -> RunSpec:
        return compose_spec([*asked, f"agents.file={of}", *more])

    def opened() -> RunDir:
        return RunDir(tmp_path / "run")

    first = opened()
    first.open(spec())
    first.keep_agents(file)
    (tmp_path / "run" / "env.json").write_text("{}")
    moved = tmp_path / "moved.py"
    moved.write_text(code)
    again = opened()
    again.open(spec("apps.big.engine.cpus=0.5", "agents.roles.judge.replicas=3", of=moved))
    again.keep_agents(moved)
    with pytest.raises(ConfigError, match=r"apps.big.model.name=other: the run dir was made with b"):
        opened().open(spec("apps.big.model.name=other"))
    with pytest.raises(ConfigError, match=r"apps.code.engine.memory_mb=100: the run dir was made with 512"):
        opened().open(spec("apps.code.engine.memory_mb=100"))
    with pytest.raises(ConfigError, match=r"agents.limits.turns=3: the run dir was made with 100"):
        opened().open(spec("agents.limits.turns=3"))
    moved.write_text(code.replace("yes", "no"))
    with pytest.raises(ConfigError, match=r"agents.file=.*moved.py: has changed since the run dir began"):
        again.keep_agents(moved)


def test_programs_keep_to_their_sandbox_but_not_to_k(tmp_path: Path) -> None:
    def open_with(*more: str) -> None:
        run_dir = RunDir(tmp_path)
        run_dir.open(
            compose_spec(
                ["engine=openai", "engine.api_key_env=null", "tracker=none", "pipeline=humaneval",
                 "dataset=humaneval_sample", *more]
            )
        )  # fmt: skip
        run_dir.write_environment({"data": {"fingerprint": None}, "model": {"revision": None, "checksum": None}})

    open_with()
    open_with("pipeline.scorers.0.pass_at=[1,5]", "apps.code.engine.cpus=2")
    for changed in ("apps.code.engine.memory_mb=100", "pipeline.scorers.0.timeout_s=1"):
        with pytest.raises(ConfigError, match=r"memory_mb|scorers"):
            open_with(changed)
