"""A run's conversations as one page of HTML that needs nothing else: no server, no network.

What models wrote is hostile. It stands in a block of JSON, in which no `<` is left, and the page's script shows it as
text only. The page's policy lets it run that one script and load nothing at all.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Iterable, Iterator
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any

import orjson

from matrix.data.rows import Row
from matrix.errors import DataError
from matrix.show.find import Run
from matrix.show.totals import Totals
from matrix.show.view import converse

# In JSON these only stand inside strings, where an escape means the same. The last two end a line in old JavaScript.
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_TABLE = str.maketrans(_ESCAPES)


def write_page(target: Path, run: Run, totals: Totals, rows: Iterable[Row], note: str) -> int:
    """Write the page; it appears when it is whole.

    Args:
        target: The file.
        run: The run that it shows.
        totals: Over all of its rows.
        rows: Those that are on the page.
        note: Which rows these are, if not all.

    Returns:
        Its size in bytes.

    Raises:
        DataError: The file can't be written.
    """
    half = target.with_name(f".{target.name}.half")
    try:
        with half.open("w", encoding="utf-8") as file:
            file.writelines(page(run, totals, rows, note))
        half.replace(target)
        return target.stat().st_size
    except OSError as error:
        raise DataError(f"{target}: {error.strerror}; the page was not written") from error
    finally:
        half.unlink(missing_ok=True)


def page(run: Run, totals: Totals, rows: Iterable[Row], note: str) -> Iterator[str]:
    """The page, in pieces."""
    parts = {name: _file(f"page.{name}") for name in ("css", "js")}
    head, tail = _file("page.html").split("@data@")
    for name, text in parts.items():
        head, tail = (piece.replace(f"@{name}-hash@", _hash(text)).replace(f"@{name}@", text) for piece in (head, tail))
    yield head
    yield f'{{"run":{_json(_about(run, totals, note))},"rows":['
    for number, row in enumerate(rows):
        yield (",\n" if number else "\n") + _json(converse(row))
    yield "]}"
    yield tail


def _about(run: Run, totals: Totals, note: str) -> dict[str, Any]:
    return {
        "name": run.name,
        "config": run.config,
        "status": run.status,
        "made": time.strftime("%Y-%m-%d %H:%M"),
        "note": note,
        "rows": totals.rows,
        "errors": dict(totals.errors.most_common()),
        "endings": dict(totals.endings.most_common()),
        "scores": {name: mean.value for name, mean in totals.scores.items()},
        "metrics": {name: mean.value for name, mean in totals.metrics.items()},
        "turns": totals.turns.value if totals.turns.count else None,
        "took_s": totals.took_s.value,
        "tokens": {"prompt": totals.prompt_tokens, "completion": totals.completion_tokens},
    }


def _json(value: Any) -> str:
    return orjson.dumps(value, str).decode().translate(_TABLE)


def _file(name: str) -> str:
    return (resources.files("matrix.show") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """What a page's policy knows a script or style by."""
    return f"sha256-{base64.b64encode(sha256(text.encode()).digest()).decode()}"
