"""From a row's columns to the program that is run."""

from __future__ import annotations

from typing import Any

import pytest

from matrix.data.rows import Example
from matrix.errors import ConfigError, DataError
from matrix.pipelines.executions import ExecutionBuilder
from matrix.spec import ExecuteSpec

HUMANEVAL = {
    "prompt": "def f(x):",
    "canonical_solution": "    return x",
    "test": "def check(c): assert c(1) == 1",
    "entry_point": "f",
}


def build(columns: dict[str, Any], **pipeline: Any) -> dict[str, Any]:
    spec = ExecuteSpec.model_validate({"kind": "execute", "name": "execute", **pipeline})
    return ExecutionBuilder(spec).build(Example("a", 0, columns))


def test_a_row_brings_its_program_and_what_that_gets() -> None:
    columns = {"code": "1", "stdin": "2", "args": ["3"], "timeout": 4, "memory": None, "note": "x", "id": 7}
    assert build(columns) == {"code": "1", "stdin": "2", "args": ["3"], "timeout": 4}


def test_the_pipeline_says_what_a_row_does_not() -> None:
    own = {"language": "bash", "timeout": 3, "memory": 64}
    assert build({"code": "1", "timeout": 5}, **own) == {"code": "1", "language": "bash", "timeout": 5, "memory": 64}


def test_parts_and_a_template_make_a_program() -> None:
    keys = ["prompt", "canonical_solution", "test"]
    made = build(HUMANEVAL, text_keys=keys, prompt_template="check({entry_point}) # {{}}")
    # What the program is made of goes into nothing else: `test` would be judged a second time.
    assert made == {"code": "def f(x):\n    return x\ndef check(c): assert c(1) == 1\ncheck(f) # {}"}
    assert build(HUMANEVAL, text_keys=["prompt"])["test"] == HUMANEVAL["test"]
    assert build({"a": {"tests": ["x", "y"]}}, text_keys=["a.tests"]) == {"code": "x\ny"}


@pytest.mark.parametrize(
    ("columns", "pipeline", "said"),
    [
        (
            {"cod": "1"},
            {},
            "there is no column 'code' (pipeline.text_keys=[...] would name others): row 'a' has only the columns cod",
        ),
        ({"x": 1}, {"text_keys": ["x"]}, "pipeline.text_keys=x: row 'a' holds 1, not text"),
        (
            {"x": "1"},
            {"prompt_template": "{y}"},
            "pipeline.prompt_template: there is no column 'y': row 'a' has only the columns x",
        ),
    ],
)
def test_a_row_that_lacks_something_is_told(columns: dict[str, Any], pipeline: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError) as raised:
        build(columns, **pipeline)
    assert said in str(raised.value)


@pytest.mark.parametrize("template", ["f({})", "f({0})", "{", "{x"])
def test_a_template_that_no_row_can_fill_is_refused(template: str) -> None:
    with pytest.raises(ConfigError, match="prompt_template"):
        build({"x": "1"}, prompt_template=template)
