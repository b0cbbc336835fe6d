"""agents=swe: what its roles say, the file that SWE-bench's harness takes, and apptainer's files of its images."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from matrix.agents import State, Turn
from matrix.agents.services import report, shown
from matrix.agents.teams.swe.images import IMAGE, conversions
from matrix.agents.teams.swe.predictions import predictions
from matrix.agents.teams.swe.roles import Reviewer, commands
from matrix.client.containers import Ran
from matrix.commands import convert_images, swe_predictions
from matrix.compose import compose_spec
from matrix.data.readers import load
from matrix.data.rows import AgentRow, Entry, Example
from matrix.errors import AppError, ConfigError, DataError
from matrix.pipelines.prompt import compile_template
from matrix.spec.agents import ContainerTool


def ran(output: str, code: int | None = 0) -> Ran:
    return Ran(code, output, "", code is None, 0, 1.5)


# --- what is said -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Look.\n\n```bash\nls -la\n```\nThen.", ["ls -la"]),
        ("```sh\na &&\nb\n```", ["a &&\nb"]),
        ("  ```bash \n  ls\n  ```", ["  ls"]),
        ("```python\nprint(1)\n```\n```bash\npython x.py\n```", ["python x.py"]),
        ("```bash\nls\n```\n\n```bash\npwd\n```", ["ls", "pwd"]),
        ("```bash\ncat > a.md <<'EOF'\nuse ``` here\nEOF\n```", ["cat > a.md <<'EOF'\nuse ``` here\nEOF"]),
        ("I would run `ls`.", []),
        ("```bash\nls", []),
    ],
)
def test_commands_of_an_answer(text: str, found: list[str]) -> None:
    assert commands(text) == found


class Says:
    """What the reviewer uses of its tools."""

    def prompt(self, **more: Any) -> str:
        return f"{more['count']} blocks"


async def review(text: str) -> tuple[Turn, State]:
    state = State("r", 0, 0, 0, {}, [Entry("coder", text, 0.0, 0.0)], metrics={"malformed": 0.0})
    turn: Any = await Reviewer().act(state, Says())  # type: ignore[arg-type]
    return turn, state


async def test_the_reviewer_lets_one_command_through_and_explains_the_rest() -> None:
    turn, state = await review("So:\n```bash\nmake test\n```")
    assert (turn.text, turn.next, turn.data) == ("", "executor", {"command": "make test"})
    assert state.metrics["malformed"] == 0
    turn, state = await review("```bash\na\n```\n```bash\nb\n```")
    assert (turn.text, turn.next, state.metrics["malformed"]) == ("2 blocks", "coder", 1)
    turn, _ = await review("Done.")
    assert turn.text == "0 blocks"


def test_a_report_of_a_command() -> None:
    assert report(ran("a\nb\n"), 100) == "exit code 0\na\nb"
    assert report(ran("", 1), 100) == "exit code 1, no output"
    assert report(ran("x\n", None), 100) == "it was ended after 2 s\nx"
    assert shown("a" * 50 + "b" * 50, 20) == "a" * 10 + "\n... 80 characters are left out here ...\n" + "b" * 10


# --- the data set and its recipes -------------------------------------------------------------------------------------


def test_each_sample_has_a_test_that_fails_and_a_patch_that_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = compose_spec(["tracker=none", "engine=openai", "engine.api_key_env=null", "dataset=swe_sample"])
    rows = [row for row in load(spec.dataset).examples if isinstance(row, Example)]
    assert len({row.id for row in rows}) == 3
    # What Python compiled is taken for new if the patch comes in the same second.
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    for row in rows:
        folder = tmp_path / row.id
        folder.mkdir()
        # The container's folder stands in the script; here another one does.
        setup = row.columns["setup"].replace("/testbed", str(folder))
        subprocess.run(["bash", "-c", setup], check=True, cwd=folder)
        before = subprocess.run(row.columns["test"], shell=True, cwd=folder, capture_output=True, check=False)
        assert before.returncode == 1, before.stderr
        subprocess.run(["git", "apply"], input=row.columns["patch"].encode(), check=True, cwd=folder)
        after = subprocess.run(row.columns["test"], shell=True, cwd=folder, capture_output=True, check=False)
        assert after.returncode == 0, after.stderr


@pytest.mark.parametrize("name", ["verified", "lite"])
def test_recipes_use_the_benchmark_s_images(name: str) -> None:
    spec = compose_spec(["tracker=none", "cluster=slurm", "cluster.workers=3", f"recipes=swe_bench_{name}"])
    assert spec.dataset.hub == f"princeton-nlp/SWE-bench_{name.title()}"
    assert spec.agents is not None
    shell = spec.agents.tools["shell"]
    assert isinstance(shell, ContainerTool)
    # The same as in `matrix convert_images`, which doesn't compose a recipe.
    assert shell.image == IMAGE
    row = Example("x", 0, {"instance_id": "django__django-11099"})
    made = compile_template(shell.image, "image").render(row)
    assert made == "docker.io/swebench/sweb.eval.x86_64.django_1776_django-11099:latest"
    assert compile_template(shell.setup or "", "setup").render(row) == ""


# --- predictions ------------------------------------------------------------------------------------------------------


def row(index: int, patch: str | None, trial: int = 0, **task: Any) -> AgentRow:
    task = {"instance_id": f"repo__name-{index}", **task}
    last = (
        Entry("executor", "handed in", 0.0, 0.0, {"patch": patch}) if patch is not None else Entry("coder", "?", 0, 0)
    )
    ended = "submitted" if patch is not None else "max_turns"
    return AgentRow(f"row {index}", index, trial, "ok", {"task": task}, history=[last], termination=ended)


def write_run(folder: Path, *rows: AgentRow) -> Path:
    (folder / "rows").mkdir(parents=True)
    (folder / "spec.yaml").write_text("name: swe\nmodel: {name: tiny}\n")
    lines = b"".join(orjson.dumps(one, None, orjson.OPT_APPEND_NEWLINE) for one in rows)
    (folder / "rows" / "part-driver.jsonl").write_bytes(lines)
    return folder


def test_predictions_are_keyed_by_instance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", row(0, "diff 0\n"), row(1, None), row(0, "diff 0b\n", trial=1))
    assert swe_predictions.main([str(run)]) == 0
    assert "2 instances, 1 with a patch" in capsys.readouterr().err
    told = json.loads((run / "predictions.json").read_text())
    assert told == {
        f"repo__name-{index}": {
            "instance_id": f"repo__name-{index}",
            "model_name_or_path": "tiny",
            "model_patch": patch,
        }
        for index, patch in enumerate(["diff 0\n", ""])
    }
    file = tmp_path / "mine.json"
    assert swe_predictions.main([str(run), "trial=1", "model=other", f"output={file}"]) == 0
    (one,) = json.loads(file.read_text()).values()
    assert (one["model_name_or_path"], one["model_patch"]) == ("other", "diff 0b\n")


def test_predictions_of_another_run(tmp_path: Path) -> None:
    other = AgentRow("a", 0, 0, "ok", {"task": {"question": "?"}}, termination="end")
    with pytest.raises(DataError, match="no column instance_id"):
        predictions([other], "tiny")
    with pytest.raises(DataError, match="another one with the instance_id repo__name-0"):
        predictions([row(0, "a"), row(1, "b", instance_id="repo__name-0")], "tiny")
    run = write_run(tmp_path / "run", row(0, "diff"))
    with pytest.raises(DataError, match="no rows of trial 7"):
        swe_predictions.main([str(run), "trial=7"])
    with pytest.raises(ConfigError, match="trial=x: should be a number"):
        swe_predictions.main([str(run), "trial=x"])
    with pytest.raises(ConfigError, match="RUN: give one run dir"):
        swe_predictions.main([])


# --- apptainer's files ------------------------------------------------------------------------------------------------

INSTANCES = [{"instance_id": f"repo__name-{number}"} for number in range(3)]
APPTAINER = """#!{python}
import sys
from pathlib import Path
Path("calls").open("a").write(" ".join(sys.argv[1:]) + "\\n")
*_, to, image = sys.argv
Path(to).write_text("half")
sys.exit(1 if "name-1" in image and Path("calls").read_text().count("name-1:") < {works_at} else 0)
"""


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in INSTANCES))
    monkeypatch.chdir(tmp_path)
    return ["folder=images", "dataset=jsonl", "dataset.path=rows.jsonl", "dataset.id_key=instance_id"]


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, works_at: int) -> None:
    """A program in apptainer's place, which isn't to be had here: it has its command line, and writes a line."""
    (folder / "bin").mkdir()
    program = folder / "bin" / "apptainer"
    program.write_text(APPTAINER.format(python=sys.executable, works_at=works_at))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")


def test_the_plan_is_commands_of_a_shell(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert convert_images.main([*arguments, "--plan", "dataset.limit=1"]) == 0
    assert capsys.readouterr().out == (
        "apptainer pull --force --disable-cache images/.repo__name-0.sif.part "
        "docker://docker.io/swebench/sweb.eval.x86_64.repo_1776_name-0:latest "
        "&& mv images/.repo__name-0.sif.part images/repo__name-0.sif\n"
    )
    assert convert_images.main([*arguments, "--plan", "image=mine/{{ instance_id }}", "dataset.limit=1"]) == 0
    assert "docker://mine/repo__name-0 " in capsys.readouterr().out
    assert not Path("images").exists()


def test_files_are_whole_or_not_there_and_made_once(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(tmp_path, monkeypatch, works_at=4)
    once = [*arguments, "tries=2", "pause_s=0.01"]
    assert convert_images.main(once) == 1
    assert "2 of 3 files are there; these couldn't be made: repo__name-1.sif" in capsys.readouterr().out
    assert sorted(file.name for file in Path("images").iterdir()) == ["repo__name-0.sif", "repo__name-2.sif"]
    assert convert_images.main(once) == 0
    assert len(list(Path("images").iterdir())) == 3
    made = [line.split()[-1].rpartition("/")[2] for line in Path("calls").read_text().splitlines()]
    assert [made.count(f"sweb.eval.x86_64.repo_1776_name-{number}:latest") for number in range(3)] == [1, 4, 1]


def test_what_can_t_be_converted(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AppError, match="no apptainer"):
        convert_images.main(arguments)
    template = compile_template(IMAGE, "image")
    with pytest.raises(DataError, match=r"can't be the name of a file"):
        list(conversions([Example("a/b", 0, INSTANCES[0])], template, Path("x")))
    with pytest.raises(DataError, match="instance_id"):
        list(conversions([Example("a", 0, {"other": 1})], template, Path("x")))
    with pytest.raises(ConfigError, match=r"dataset=swe_bench: .*swe_bench_"):
        convert_images.main(["folder=x", "dataset=swe_bench"])
