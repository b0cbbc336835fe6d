"""Requests that can't be put into a vendor's words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from matrix.serving.backend import ApiError, Json

VLLM_FIELDS = {
    "chat_template_kwargs",
    "ignore_eos",
    "min_p",
    "min_tokens",
    "prompt_logprobs",
    "repetition_penalty",
    "structured_outputs",
}
"""Fields of vLLM's and SGLang's own that vendors' APIs have nothing for."""

_NEUTRAL = {"n": 1, "repetition_penalty": 1}


def refuse_fields(body: Json, fields: Iterable[str], api: str) -> None:
    """Refuse what would change the answer but has no counterpart in the vendor's API.

    A field that says what would happen anyway (null, 0, false, empty; `n` of 1) is let through.

    Raises:
        ApiError: 400, naming all such fields.
    """
    if given := sorted(name for name in fields if body.get(name) and body[name] != _NEUTRAL.get(name)):
        raise ApiError(400, f"{api} has no {', '.join(given)}.")


@contextmanager
def reading_a_request() -> Iterator[None]:
    """Within it, what can't be found or used is the request's fault: the body comes from a client as it is.

    Raises:
        ApiError: 400.
    """
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        message = f"The request isn't as OpenAI's API wants it: {type(error).__name__}: {error}"
        raise ApiError(400, message) from error
