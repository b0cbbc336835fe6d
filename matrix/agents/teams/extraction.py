"""Fields out of a model's reply, which may be JSON, nearly JSON, tags, or lines that begin with their names."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import islice
from typing import Any

_TRIES = 20
"""Braces at which JSON is looked for: a reply that repeats itself may have thousands."""

# A model that writes LaTeX in JSON forgets to double the backslash, and then `\f` of `\frac` is a form feed. `\b` and
# `\f` are never meant; for `\n`, `\r`, `\t` and `\u` the letters that follow tell.
_LATEX = re.compile(
    r"""
    \\\\ | \\(?P<command>
        (?![bfnrtu"\\/])
      | [bf](?=[A-Za-z])
      | n(?=(?:eq?|abla|u|ot|otin|eg|mid)(?![A-Za-z]))
      | r(?=(?:ight|ho|angle|ightarrow|m|ceil|floor)(?![A-Za-z]))
      | t(?=(?:ext[a-z]{0,2}|imes|heta|an|anh|au|o|op|ilde|riangle|frac|herefore)(?![A-Za-z]))
      | u(?![0-9A-Fa-f]{4})
    )
    """,
    re.VERBOSE,
)


def read_fields(text: str, names: Sequence[str]) -> dict[str, str] | None:
    """The fields of a reply.

    Args:
        text: The reply.
        names: Fields that are looked for; the first has to be there.

    Returns:
        Those that it has; None if it has none in any of the forms.
    """
    for read in (_json_fields, _tagged_fields, _line_fields):
        found = read(text, names)
        if found is not None:
            return found
    return None


def _json_fields(text: str, names: Sequence[str]) -> dict[str, str] | None:
    """Of the first JSON object that has the first field; text around it, such as a fence, doesn't matter."""
    decoder = json.JSONDecoder(strict=False)
    repaired = _LATEX.sub(lambda found: found[0] if found["command"] is None else f"\\{found[0]}", text)
    for brace in islice(re.finditer(r"\{", repaired), _TRIES):
        try:
            value, _ = decoder.raw_decode(repaired, brace.start())
        except (json.JSONDecodeError, RecursionError):
            continue
        fields = {str(key).casefold(): item for key, item in value.items()}
        if names[0] in fields:
            return {name: _text(fields[name]) for name in names if name in fields}
    return None


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value.strip() if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _tagged_fields(text: str, names: Sequence[str]) -> dict[str, str] | None:
    tag = re.compile(rf"<(/?)({'|'.join(names)})>", re.IGNORECASE)
    _, *parts = tag.split(text)
    found: dict[str, str] = {}
    # A tag that is never closed ends with the next one, or with the reply, which may have been cut off.
    for slash, name, content in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        if not slash:
            found.setdefault(name.casefold(), content.strip())
    return found if names[0] in found else None


def _line_fields(text: str, names: Sequence[str]) -> dict[str, str] | None:
    label = re.compile(rf"^[\s*#]{{0,8}}({'|'.join(names)})[\s*]{{0,4}}:[\s*]{{0,4}}", re.IGNORECASE | re.MULTILINE)
    _, *parts = label.split(text)
    found: dict[str, str] = {}
    for name, content in zip(parts[::2], parts[1::2], strict=True):
        found.setdefault(name.casefold(), content.strip())
    return found if names[0] in found else None
