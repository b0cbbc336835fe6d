"""The body of a row's request: what is asked, and how the answer is drawn."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from matrix.data.columns import find
from matrix.data.rows import Example
from matrix.errors import DataError
from matrix.pipelines.prompt import compile_prompt, shortened
from matrix.spec.model import SamplingSpec
from matrix.spec.workload import GenerateSpec

_NOT_SAMPLING = frozenset({"model", "messages", "prompt", "stream", "extra"})
"""What a row's own sampling must not set: the run decides it."""


class RequestBuilder:
    """Makes the bodies of a run's requests.

    Args:
        pipeline: Where prompts come from, and which API they go to.
        sampling: The run's sampling.

    Raises:
        ConfigError: Templates of the prompt have syntax errors.
    """

    def __init__(self, pipeline: GenerateSpec, sampling: SamplingSpec) -> None:
        self._prompt = compile_prompt(pipeline)
        self._as_text = pipeline.api == "completions"
        self._sampling_key = pipeline.sampling_key
        self._sampling = sampling
        self._fields = self._sent(sampling)

    def build(self, example: Example) -> dict[str, Any]:
        """The body for one row, but for `model`, and `seed` where the row brings none of its own.

        Returns:
            `messages`, or `prompt` with `pipeline.api=completions`, and the fields of sampling. A dict of its own at
            every call.

        Raises:
            DataError: The row lacks a column or holds something else in it; the message names both.
        """
        body: dict[str, Any] = {}
        if self._as_text:
            body["prompt"] = self._prompt.render_text(example)
        else:
            body["messages"] = self._prompt.render(example)
        return body | (self._fields if self._sampling_key is None else self._own_fields(example, self._sampling_key))

    def _own_fields(self, example: Example, key: str) -> dict[str, Any]:
        """The run's sampling with the row's on top; a null of the row is no value."""
        where = f"pipeline.sampling_key={key}: row {example.id!r}"
        own = find(example.columns, key)
        if own is None:
            return self._fields
        if not isinstance(own, dict):
            raise DataError(f"{where} holds {shortened(repr(own))}, not an object such as {{'temperature': 0.5}}")
        own = {name: value for name, value in own.items() if value is not None}
        if wrong := sorted(_NOT_SAMPLING & own.keys()):
            raise DataError(f"{where} sets {', '.join(wrong)}, which is no sampling field")
        seed = own.get("seed", 0)
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise DataError(f"{where}: seed={shortened(repr(seed))}: should be a whole number")
        known = {name: own.pop(name) for name in SamplingSpec.model_fields if name in own}
        try:
            sampling = SamplingSpec.model_validate({**self._sampling.model_dump(), **known})
        except ValidationError as error:
            wrong = [
                f"{detail['loc'][0]}={shortened(repr(detail['input']))}: {detail['msg']}" for detail in error.errors()
            ]
            raise DataError(f"{where}: {'; '.join(wrong)}".replace("Input should", "should")) from error
        return self._sent(sampling) | own

    def _sent(self, sampling: SamplingSpec) -> dict[str, Any]:
        """The fields of a body; what is None isn't sent, so that the server's default holds."""
        fields = sampling.model_dump(exclude={"extra"}, exclude_none=True)
        if self._as_text:
            # Here `logprobs` is the number of alternatives to each token, and 0 asks for the token's own alone.
            # https://platform.openai.com/docs/api-reference/completions/create
            top = fields.pop("top_logprobs", 0)
            if fields.pop("logprobs", False):
                fields["logprobs"] = top
        return fields | sampling.extra
