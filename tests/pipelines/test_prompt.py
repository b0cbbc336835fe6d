from __future__ import annotations

import pytest

from matrix.data.rows import Example
from matrix.errors import ConfigError, DataError
from matrix.pipelines.prompt import compile_prompt, compile_template
from matrix.spec.workload import GenerateSpec, Message

EXAMPLE = Example("q1", 0, {"question": "2 + 2?", "choices": ["3", "4"], "Correct Answer": "4"})


def generate(*contents: str, **fields: object) -> GenerateSpec:
    prompt = [Message(role="user", content=content) for content in contents]
    return GenerateSpec.model_validate({"kind": "generate", "name": "test", "prompt": prompt, **fields})


def render(source: str, example: Example = EXAMPLE) -> str:
    return compile_template(source, "key").render(example)


def test_renders_messages_with_their_roles() -> None:
    spec = GenerateSpec(
        kind="generate",
        name="test",
        prompt=[Message(role="system", content="Be brief."), Message(role="user", content="{{ question }}")],
    )
    assert compile_prompt(spec).render(EXAMPLE) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2 + 2?"},
    ]


def test_columns_are_variables_and_row_is_all_of_them() -> None:
    assert render("{{ row['Correct Answer'] }} of {{ choices | join(', ') }}") == "4 of 3, 4"


def test_text_of_a_row_is_not_a_template_and_not_escaped() -> None:
    example = Example("q", 0, {"question": "{{ 7 * 7 }} <b> & \\boxed{}"})
    assert render("{{ question }}", example) == "{{ 7 * 7 }} <b> & \\boxed{}"


def test_drops_one_newline_at_the_end_as_yaml_blocks_have_it() -> None:
    assert render("{{ question }}\n") == "2 + 2?"


@pytest.mark.parametrize("source", ["{{ answer }}", "{{ row.answer }}", "{% for x in answer %}{% endfor %}"])
def test_a_missing_column_names_key_column_row_and_the_columns_there_are(source: str) -> None:
    with pytest.raises(DataError) as caught:
        compile_prompt(generate("hello", source)).render(EXAMPLE)
    message = str(caught.value)
    assert message.startswith("pipeline.prompt.1.content: ")
    assert "'answer'" in message
    assert "'q1' has the columns question, choices, Correct Answer" in message


@pytest.mark.parametrize("source", ["{{ question + 1 }}", "{{ 1 / 0 }}", "{{ range(10 ** 9) | list }}"])
def test_a_template_that_fails_on_a_value_is_a_data_error(source: str) -> None:
    with pytest.raises(DataError, match=r"^key: .* \(row 'q1' has"):
        render(source)


@pytest.mark.parametrize(
    "source", ["{{ ''.__class__.__mro__ }}", "{{ row.__init__.__globals__ }}", "{{ choices.append('5') }}"]
)
def test_templates_reach_neither_python_nor_the_row_itself(source: str) -> None:
    with pytest.raises(DataError):
        render(source)
    assert EXAMPLE.columns["choices"] == ["3", "4"]


def test_all_syntax_errors_are_reported_with_their_keys() -> None:
    with pytest.raises(ConfigError) as caught:
        compile_prompt(generate("{{ question", "fine", "line one\n{% if x %}"))
    first, second = caught.value.problems
    assert first.key == "pipeline.prompt.0.content"
    assert first.value == "{{ question"
    assert second.key == "pipeline.prompt.2.content"
    assert "line 2" in second.message


READY = generate(messages_key="messages")


def test_ready_messages_are_handed_on_as_they_are() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "{{ hi }}"}]}]
    assert compile_prompt(READY).render(Example("1", 0, {"messages": messages})) == messages


@pytest.mark.parametrize("value", [None, "hi", [], ["hi"], [{"content": "hi"}], [{"role": 1}], {"role": "user"}])
def test_a_column_without_messages_is_a_data_error_that_shows_it(value: object) -> None:
    with pytest.raises(DataError, match=r"pipeline\.messages_key=messages: row '1' holds"):
        compile_prompt(READY).render(Example("1", 0, {"messages": value}))


def test_a_missing_column_of_messages_names_the_columns_there_are() -> None:
    with pytest.raises(DataError, match=r"pipeline\.messages_key=messages: row '1' has only the columns a, b"):
        compile_prompt(READY).render(Example("1", 0, {"a": 1, "b": 2}))
