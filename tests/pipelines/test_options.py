"""The options in conf/ that belong to pipelines: they compose, fit the specs and explain every field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from matrix.data.rows import Example
from matrix.pipelines.prompt import compile_prompt, compile_template
from matrix.pipelines.scorers import SCORERS
from matrix.spec.base import Spec
from matrix.spec.model import SamplingSpec
from matrix.spec.workload import DatasetSpec, ExecuteSpec, GenerateSpec

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
SPECS: dict[str, type[Spec]] = {"pipeline": GenerateSpec, "dataset": DatasetSpec, "sampling": SamplingSpec}
FILES = [path for group in SPECS for path in sorted((CONF / group).glob("*.yaml"))]
ROWS: dict[str, dict[str, Any]] = {
    "sample_qa": {"question": "What is 2 + 2?", "answer": "4"},
    "gsm8k": {"question": "How many?", "answer": "2 + 2 = <<2+2=4>>4\n#### 4"},
    "math500": {"problem": "Simplify.", "answer": r"\frac{1}{2}"},
    "mcq": {"question": "Which?", "choices": ["one", "two"], "answer": 1},
    "generate": {"messages": [{"role": "user", "content": "Hi"}]},
    "inference": {"text": "Hi"},
    "humaneval": {"prompt": "def f(x):\n", "test": "def check(f): ...", "entry_point": "f"},
    "humaneval_completions": {"prompt": "def f(x):\n", "test": "def check(f): ...", "entry_point": "f"},
    "mbpp": {"text": "Write f.", "test_list": ["assert f(1)"], "test_setup_code": ""},
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_each_option_names_and_explains_every_field(path: Path) -> None:
    text = path.read_text()
    fields = yaml.safe_load(text)
    spec = ExecuteSpec if fields.get("kind") == "execute" else SPECS[path.parent.name]
    fields.pop("defaults", None)
    assert set(fields) == set(spec.model_fields)
    spec.model_validate(fields)
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line.partition(":")[0] in fields:
            assert lines[number - 1].startswith("# "), line


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A config with the groups in the order of conf/config.yaml, and nothing else."""
    groups = {"sampling": "default", "dataset": "sample", "engine@apps.code.engine": None, "pipeline": "sample_qa"}
    defaults = ["_self_", *({group: option} for group, option in groups.items())]
    search = {"searchpath": [CONF.as_uri()]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"defaults": defaults, "hydra": search}))
    return tmp_path


def composed(root: Path, *overrides: str) -> tuple[GenerateSpec, DatasetSpec, SamplingSpec]:
    with initialize_config_dir(str(root), version_base="1.3"):
        config: Any = OmegaConf.to_container(compose("config", list(overrides)))
    return (
        GenerateSpec.model_validate(config["pipeline"]),
        DatasetSpec.model_validate(config["dataset"]),
        SamplingSpec.model_validate(config["sampling"]),
    )


@pytest.mark.parametrize(
    ("name", "dataset", "max_tokens"),
    [
        ("sample_qa", "sample", 32),
        ("gsm8k", "gsm8k", 512),
        ("math500", "math500", 1024),
        ("mcq", "jsonl", 512),
        ("generate", "jsonl", 512),
        ("inference", "jsonl", 512),
    ],
)
def test_a_pipeline_brings_its_data_set_and_sampling(root: Path, name: str, dataset: str, max_tokens: int) -> None:
    pipeline, data, sampling = composed(root, f"pipeline={name}")
    assert (pipeline.name, data.name, sampling.max_tokens) == (name, dataset, max_tokens)


def test_the_command_line_wins_over_what_a_pipeline_brings(root: Path) -> None:
    _, data, sampling = composed(root, "pipeline=math500", "dataset=gsm8k", "sampling=reasoning", "sampling.n=4")
    assert (data.name, sampling.max_tokens, sampling.n) == ("gsm8k", 16384, 4)


# Those with a prompt.
ASKING = [path for path in FILES if path.parent.name == "pipeline" and path.stem != "execute"]


@pytest.mark.parametrize("path", ASKING, ids=lambda path: path.stem)
def test_prompts_and_references_render(root: Path, path: Path) -> None:
    pipeline, _, _ = composed(root, f"pipeline={path.stem}")
    example = Example("1", 0, ROWS[path.stem])
    messages = compile_prompt(pipeline).render(example)
    assert messages[-1]["role"] == "user"
    assert "\n\n\n" not in messages[-1]["content"]
    for scorer in pipeline.scorers:
        if scorer.kind in SCORERS:
            SCORERS[scorer.kind].gold(compile_template(scorer.reference, "reference").render(example))


def test_multiple_choice_lists_the_choices_one_a_line(root: Path) -> None:
    pipeline, _, _ = composed(root, "pipeline=mcq")
    content = compile_prompt(pipeline).render(Example("1", 0, ROWS["mcq"]))[0]["content"]
    assert content.startswith("Which?\nA. one\nB. two\n\nThink")


def test_sample_questions_are_distinct_and_their_answers_can_be_scored() -> None:
    rows = [json.loads(line) for line in (ROOT / "matrix/data/samples/questions.jsonl").read_text().splitlines()]
    assert len(rows) == 48
    assert all(set(row) == {"id", "question", "answer", "topic"} for row in rows)
    assert len({row["id"] for row in rows}) == len({row["question"] for row in rows}) == 48
    for row in rows:
        contains = SCORERS["contains"]
        assert len(row["answer"].split()) == 1
        assert contains.judge(f"It is {row['answer']}.", contains.gold(row["answer"])).value == 1
        assert contains.judge(row["question"], contains.gold(row["answer"])).value == 0, row
