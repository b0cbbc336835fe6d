"""Secrets stay out of what is stored."""

from __future__ import annotations

import pytest

from matrix.spec.redact import is_secret, redact, redact_arguments


@pytest.mark.parametrize("key", ["api_key", "OPENAI_API_KEY", "HF_TOKEN", "token", "aws_secret_access_key", "password", "Authorization"])  # fmt: skip
def test_secrets(key: str) -> None:
    assert is_secret(key)


@pytest.mark.parametrize(
    "key", ["max_tokens", "api_key_env", "token_path", "tokenizer", "prompt_tokens", "key", "name"]
)
def test_no_secrets(key: str) -> None:
    assert not is_secret(key)


def test_redact_goes_deep_and_leaves_the_rest() -> None:
    plain = {
        "engine": {"env": {"HF_TOKEN": "hf_x", "A": "b"}, "args": {"api_key": ["k1", "k2"], "max_tokens": 3}},
        "token": None,
    }
    assert redact(plain) == {
        "engine": {"env": {"HF_TOKEN": "***", "A": "b"}, "args": {"api_key": ["***", "***"], "max_tokens": 3}},
        "token": None,
    }


def test_redact_arguments() -> None:
    assert redact_arguments(["run.py", "++engine.env.HF_TOKEN=hf_x", "sampling.max_tokens=3", "-m"]) == [
        "run.py", "++engine.env.HF_TOKEN=***", "sampling.max_tokens=3", "-m",
    ]  # fmt: skip
