from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from matrix.data.rows import Example
from matrix.errors import ConfigError, DataError
from matrix.pipelines.requests import RequestBuilder
from matrix.spec.model import SamplingSpec
from matrix.spec.workload import GenerateSpec

GREEDY = SamplingSpec(temperature=0, max_tokens=8)
SENT = {"temperature": 0.0, "max_tokens": 8, "n": 1}
HI = [{"role": "user", "content": "Hi"}]
SYSTEM = {"role": "system", "content": "Be brief."}
LLAMA = "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"


def builder(sampling: SamplingSpec = GREEDY, **fields: Any) -> RequestBuilder:
    return RequestBuilder(GenerateSpec(kind="generate", name="test", **fields), sampling)


def build(columns: dict[str, Any], sampling: SamplingSpec = GREEDY, **fields: Any) -> dict[str, Any]:
    return builder(sampling, **fields).build(Example("q1", 0, columns))


def messages(columns: dict[str, Any], **fields: Any) -> Any:
    return build(columns, **fields)["messages"]


def test_a_prompt_of_templates() -> None:
    prompt = [{"role": "user", "content": "{{ greeting }}"}]
    assert build({"greeting": "Hi"}, prompt=prompt) == {"messages": HI, **SENT}


def test_messages_at_a_key_path() -> None:
    assert messages({"request": {"messages": HI}}, messages_key="request.messages") == HI
    assert messages({"chat": HI}, messages_key="chat") == HI
    parts = [{"role": "user", "content": [{"type": "text", "text": "{{ hi }}"}]}]
    assert messages({"chat": parts}, messages_key="chat") == parts


def test_fields_that_a_message_lacks_in_parquet_are_not_sent() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}], "name": None}
    assert messages({"chat": [call]}, messages_key="chat") == [
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    ]


def test_text_is_one_user_message() -> None:
    assert messages({"text": "Hi"}, text_key="text") == HI
    assert messages({"a": {"b": "{{ 1 }} <b>"}}, text_key="a.b") == [{"role": "user", "content": "{{ 1 }} <b>"}]


def test_text_with_llama_3_headers_is_a_dialogue() -> None:
    assert messages({"text": LLAMA}, text_key="text") == HI
    assert messages({"text": f"<|begin_of_text|>{LLAMA}"}) == HI
    with pytest.raises(DataError, match=r"pipeline.text_key=text: row 'q1': text stands before the first"):
        messages({"text": f"Once {LLAMA}"}, text_key="text")


@pytest.mark.parametrize(
    "columns",
    [
        {"messages": HI, "text": "no"},
        {"request": {"messages": HI}, "text": "no"},
        {"text": "Hi", "prompt": "no"},
        {"prompt": "Hi"},
        {"prompt": HI},
        {"messages": None, "text": "Hi"},
    ],
)
def test_without_a_key_the_row_is_searched(columns: dict[str, Any]) -> None:
    assert messages(columns) == HI


@pytest.mark.parametrize(
    ("given", "made"),
    [
        (HI, [SYSTEM, *HI]),
        ([{"role": "system", "content": "Old."}, *HI], [SYSTEM, *HI]),
        ([*HI, {"role": "system", "content": "Old."}, *HI], [*HI, SYSTEM, *HI]),
        (
            [{"role": "system", "content": "1"}, {"role": "system", "content": "2"}],
            [SYSTEM, {"role": "system", "content": "2"}],
        ),
    ],
)
def test_the_system_prompt_comes_first_or_takes_the_place_of_the_first(given: Any, made: Any) -> None:
    columns = {"messages": given}
    assert messages(columns, messages_key="messages", system_prompt="Be brief.") == made
    assert messages(columns, messages_key="messages") == given
    assert columns == {"messages": given}


def test_the_system_prompt_goes_with_every_shape() -> None:
    prompt = [{"role": "system", "content": "Old."}, {"role": "user", "content": "{{ text }}"}]
    for shape in ({"prompt": prompt}, {"text_key": "text"}, {}):
        assert messages({"text": "Hi"}, system_prompt="Be brief.", **shape) == [SYSTEM, *HI]
    assert messages({"text": LLAMA}, system_prompt="Be brief.") == [SYSTEM, *HI]


def test_completions_get_text_as_it_is() -> None:
    assert build({"text": LLAMA}, text_key="text", api="completions") == {"prompt": LLAMA, **SENT}
    assert build({"prompt": "Once"}, api="completions") == {"prompt": "Once", **SENT}
    prompt = [{"role": "user", "content": "Q: {{ text }}\nA:"}]
    assert build({"text": "Hi"}, prompt=prompt, api="completions")["prompt"] == "Q: Hi\nA:"


def test_log_probabilities_have_another_form_for_completions() -> None:
    chosen, top = SamplingSpec(logprobs=True), SamplingSpec(logprobs=True, top_logprobs=3)
    assert build({"text": "Hi"}, top)["top_logprobs"] == 3
    assert build({"text": "Hi"}, chosen, api="completions") == {"prompt": "Hi", "n": 1, "logprobs": 0}
    assert build({"text": "Hi"}, top, api="completions") == {"prompt": "Hi", "n": 1, "logprobs": 3}
    assert "logprobs" not in build({"text": "Hi"}, SamplingSpec(logprobs=False), api="completions")


def test_a_row_brings_its_own_sampling() -> None:
    own = {"temperature": 0.5, "n": 2, "stop": ["."], "min_tokens": 1, "seed": 7}
    body = build({"text": "Hi", "how": {"ever": own}}, sampling_key="how.ever")
    assert body == {"messages": HI, "max_tokens": 8, **own}


def test_a_row_without_sampling_or_with_nulls_takes_the_runs() -> None:
    requests = builder(SamplingSpec(temperature=0, extra={"min_tokens": 1}), sampling_key="sampling")
    bodies = [
        requests.build(Example("1", 0, {"text": "Hi", **more}))
        for more in ({}, {"sampling": None}, {"sampling": {}}, {"sampling": {"temperature": None}})
    ]
    assert all(body == {"messages": HI, "temperature": 0.0, "n": 1, "min_tokens": 1} for body in bodies)
    other = requests.build(Example("1", 0, {"text": "Hi", "sampling": {"min_tokens": 2, "temperature": 1}}))
    assert (other["min_tokens"], other["temperature"]) == (2, 1.0)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"temperature": "hot"}, r"temperature='hot': should be a valid number"),
        ({"top_p": 2, "n": 0}, r"top_p=2: should be less.*; n=0: should be greater"),
        ({"messages": HI, "model": "x"}, "sets messages, model, which is no sampling field"),
        ({"seed": "1"}, "seed='1': should be a whole number"),
        ("greedy", r"holds 'greedy', not an object such as \{'temperature': 0.5\}"),
    ],
)
def test_sampling_of_a_row_that_makes_no_sense(own: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"pipeline.sampling_key=sampling: row 'q1'.*{message}"):
        build({"text": "Hi", "sampling": own}, sampling_key="sampling")


@pytest.mark.parametrize(
    ("fields", "columns", "message"),
    [
        ({"text_key": "text"}, {"a": 1}, "pipeline.text_key=text: row 'q1' has only the columns a"),
        ({"text_key": "text"}, {"text": 5}, "pipeline.text_key=text: row 'q1' holds 5, not text$"),
        ({"text_key": "text"}, {"text": " \n"}, r"holds ' \\n', not text"),
        ({"text_key": "text"}, {"text": HI}, r"holds \[.*, not text$"),
        ({"messages_key": "a.b"}, {"a": {}}, "pipeline.messages_key=a.b: row 'q1' has only the columns a"),
        ({"messages_key": "m"}, {"m": "Hi"}, "holds 'Hi', not a list of chat messages"),
        ({}, {"a": 1}, r"looked for messages, request.messages, text, prompt \(.*\): row 'q1' has only the columns a"),
        ({}, {"text": None}, "holds None, not text or a list of chat messages"),
        (
            {"api": "completions"},
            {"messages": HI},
            r"looked for text, prompt \(pipeline.text_key names .*the columns messages",
        ),
    ],
)
def test_a_row_that_brings_nothing_to_ask(fields: dict[str, Any], columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        build(columns, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"text_key": "a", "messages_key": "b"},
            "takes one of .* got messages_key and text_key .set the others to null",
        ),
        ({"text_key": "a", "prompt": [SYSTEM]}, "got prompt and text_key"),
        ({"api": "completions", "messages_key": "a"}, "api=completions sends one text"),
        ({"api": "completions", "system_prompt": "a"}, "api=completions sends one text"),
        ({"api": "completions", "prompt": [SYSTEM, SYSTEM]}, "api=completions sends one text"),
    ],
)
def test_shapes_that_exclude_each_other(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        builder(**fields)


def test_templates_are_checked_before_the_first_row() -> None:
    with pytest.raises(ConfigError, match=r"pipeline\.prompt\.0\.content"):
        builder(prompt=[{"role": "user", "content": "{{ a"}])


def test_bodies_are_their_own() -> None:
    requests, example = builder(messages_key="messages"), Example("1", 0, {"messages": HI})
    body = requests.build(example)
    body["messages"].append(SYSTEM)
    body["seed"] = 1
    assert requests.build(example) == {"messages": HI, **SENT}
    assert example.columns == {"messages": [{"role": "user", "content": "Hi"}]}


def test_text_where_messages_are_looked_for_is_no_prompt() -> None:
    """A csv has nothing but text: JSON in its column `messages` must not reach a model as it stands."""
    with pytest.raises(DataError, match="not a list of chat messages"):
        messages({"messages": '[{"role": "user", "content": "Hi"}]'})
    assert messages({"prompt": HI}) == HI


def test_an_empty_cell_is_no_value() -> None:
    assert messages({"messages": "", "text": "Hi"}) == HI
