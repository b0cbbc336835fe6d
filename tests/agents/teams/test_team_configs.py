"""What conf/ says of the teams that ship, against the roles that it names and the samples that it brings."""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from matrix.agents import Role
from matrix.compose import compose_spec
from matrix.data.rows import Example
from matrix.pipelines.prompt import compile_template
from matrix.spec import AgentsSpec, RoleSpec, RunSpec

TEAMS = ["coral", "natural_reasoning", "debate"]
RECIPES = ["coral_mmlu_pro", "coral_math500", "natural_reasoning", "debate_gsm8k"]
SAMPLES = {
    "coral_mmlu_pro": "mmlu_pro_sample",
    "coral_math500": "math_sample",
    "natural_reasoning": "web_sample",
    "debate_gsm8k": "gsm8k_sample",
}
EXTRA = {"reply": "It is (B).", "answers": [{"agent": "ada", "text": "#### 4", "answer": "4"}]}


def team(spec: RunSpec) -> AgentsSpec:
    assert spec.agents is not None
    assert spec.pipeline is None
    return spec.agents


def made(spec: RoleSpec) -> Role:
    module, _, name = (spec.use or "").partition(":")
    role = getattr(importlib.import_module(module), name)
    assert issubclass(role, Role)
    inspect.signature(role).bind(**spec.options)
    return role(**spec.options)  # type: ignore[no-any-return]


def rows(dataset: str) -> list[dict[str, Any]]:
    path = compose_spec(["tracker=none", f"dataset={dataset}"]).dataset.path
    assert isinstance(path, str)
    package, _, file = path.removeprefix("package:").partition("/")
    folder = Path(str(importlib.import_module(package).__file__)).parent
    return [json.loads(line) for line in (folder / file).read_text(encoding="utf-8").splitlines()]


SPECS = [
    *([f"agents={name}"] for name in TEAMS),
    *([f"recipes={name}", "model=smollm2", f"dataset={SAMPLES[name]}"] for name in RECIPES),
]


@pytest.mark.parametrize("overrides", SPECS, ids=" ".join)
def test_every_role_can_be_made_and_asked_about_every_row_of_its_sample(overrides: list[str]) -> None:
    spec = compose_spec(["tracker=none", *overrides])
    agents = team(spec)
    examples = rows(spec.dataset.name)
    for name, role in agents.roles.items():
        made(role)
        if role.prompt is not None:
            prompt = compile_template(role.prompt, name)
            for row in examples:
                text = prompt.render(Example(id="0", index=0, columns={**row, **EXTRA}))
                # SmolLM2 has a context of 2,048 tokens, which a conversation has to fit into, too.
                assert len(text) < 4000, text
    assert set(agents.named) == set(agents.roles)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_names_a_model_and_its_team(recipe: str) -> None:
    spec = compose_spec(["tracker=none", "cluster=slurm", "cluster.workers=3", f"recipes={recipe}"])
    assert spec.model.name.startswith("llama")
    assert spec.workload_name in {*TEAMS, recipe}


def test_both_reasoners_get_the_same_instructions_and_other_ones_for_math() -> None:
    choice = team(compose_spec(["tracker=none", "agents=coral"]))
    maths = team(compose_spec(["tracker=none", "recipes=coral_math500", "model=smollm2", "dataset=math_sample"]))
    for agents in (choice, maths):
        assert agents.roles["teacher"].prompt == agents.roles["student"].prompt
        assert agents.roles["teacher"].sampling == agents.roles["student"].sampling
    assert [scorer.kind for scorer in choice.scorers + maths.scorers] == ["choice", "math"]
    assert [agents.roles["answer_extractor"].options for agents in (choice, maths)] == [
        {"choices": "options"},
        {"choices": None},
    ]
    assert "options" not in (maths.roles["teacher"].prompt or "")


def test_samples_are_shaped_like_what_they_stand_for() -> None:
    choices = rows("mmlu_pro_sample")
    assert len(choices) == 24
    for row in choices:
        assert row["answer"] == "ABCDEFGHIJ"[row["answer_index"]]
        assert 4 <= len(set(row["options"])) == len(row["options"]) <= 10
    letters = [row["answer"] for row in choices]
    assert max(map(letters.count, letters)) <= 5, "a model that always says the same letter should not look good"
    assert len({row["category"] for row in choices}) > 10

    words = rows("gsm8k_sample")
    assert len(words) == 24
    assert all(row["answer"].rpartition("#### ")[2].replace(",", "").isdigit() for row in words)

    web = rows("web_sample")
    assert [row["kind"] for row in web] == ["reasoning", "other_language", "nothing"] * 8
    for sample in (choices, words, web, rows("math_sample")):
        names = [row.get("question_id") or row.get("unique_id") or row["id"] for row in sample]
        assert len(set(names)) == len(names)
