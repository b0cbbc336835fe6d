"""Keep secrets out of everything that is stored or shown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

HIDDEN = "***"

# Names of values that are secrets. `max_tokens` and `api_key_env` (a name, not a key) are none.
_SECRET = re.compile(
    r"api_?key|access_?key|secret|passw(or)?d|credential|authorization|bearer|(^|_)token$", re.IGNORECASE
)
_NAME_OF_ONE = re.compile(r"_(env|path|file)$", re.IGNORECASE)


def is_secret(key: str) -> bool:
    """Whether a key of this name holds a secret itself."""
    return bool(_SECRET.search(key)) and not _NAME_OF_ONE.search(key)


def redact(value: Any, key: str = "") -> Any:
    """Copy plain data with every secret replaced by `***`."""
    if isinstance(value, Mapping):
        return {name: redact(item, str(name)) for name, item in value.items()}
    if isinstance(value, list):
        return [redact(item, key) for item in value]
    return HIDDEN if value is not None and is_secret(key) else value


def redact_arguments(arguments: Sequence[str]) -> list[str]:
    """Copy command line overrides (`a.b.api_key=...`) with secrets replaced by `***`."""
    redacted = []
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        secret = equals and is_secret(key.lstrip("+~").rpartition(".")[2])
        redacted.append(f"{key}={HIDDEN}" if secret else argument)
    return redacted
