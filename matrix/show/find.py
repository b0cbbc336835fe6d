"""Run dirs and their rows, as they are at the moment: also while the run goes."""

from __future__ import annotations

import difflib
import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import yaml

from matrix.data.parts import decode_row, part_files
from matrix.data.rows import Row, RowKey
from matrix.data.sorting import read_rows
from matrix.errors import DataError

_NEAR = 5
"""Names that an unknown one is answered with."""
_CUTOFF = 0.5
_SILENT_S = 60.0
"""A run that goes on writes its state every few seconds."""

_ID = re.compile(rb'\{"id":("[^"\\]*+(?:\\.[^"\\]*+)*+"),"index":')

# What of a spec tells runs apart: name, and the way to it.
_TOLD = (
    ("team", "agents.name"),
    ("pipeline", "pipeline.name"),
    ("model", "model.name"),
    ("engine", "engine.kind"),
    ("data set", "dataset.name"),
    ("rows", "dataset.limit"),
    ("trials", "trials"),
    ("seed", "seed"),
    ("temperature", "sampling.temperature"),
    ("max tokens", "sampling.max_tokens"),
)


@dataclass(frozen=True, slots=True)
class Run:
    """A run dir.

    Attributes:
        path: The folder.
        name: The run's, and the folder's own.
        config: What of its config tells it from others, by name.
        status: Of `state.json`; empty where there is none.
    """

    path: Path
    name: str
    config: dict[str, str]
    status: str

    @property
    def folder(self) -> Path:
        """The row journal's."""
        return self.path / "rows"

    def rows(self) -> Iterator[Row]:
        """All rows, one at a time, in order of input and trial.

        Raises:
            DataError: As for `read_rows`.
        """
        return read_rows(self.folder)


def find_run(path: Path) -> Run:
    """The run in a folder.

    Raises:
        DataError: There is none, or it has no rows yet; says what is there.
    """
    if not path.exists():
        beside = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, beside, n=1, cutoff=_CUTOFF)
        raise DataError(
            f"{path}: there is no such run dir" + (f"; did you mean {path.parent / near[0]}?" if near else "")
        )
    if not path.is_dir():
        raise DataError(f"{path}: is a file; give the run dir that it is in ({path.parent})")
    is_run = (path / "spec.yaml").is_file()
    if not part_files(path / "rows"):
        if is_run:
            raise DataError(f"{path}: the run has no rows yet")
        raise DataError(f"{path}: is no run dir{_below(path)}")
    spec = yaml.safe_load((path / "spec.yaml").read_text()) if is_run else {}
    state = path / "state.json"
    status = _status(json.loads(state.read_text())) if state.is_file() else ""
    name = str(_at(spec, "name") or "")
    folder = path.resolve().name
    return Run(path, " / ".join(part for part in (name, folder) if part), _config(spec), status)


def _status(state: Mapping[str, Any]) -> str:
    """How a run is; one that was killed couldn't say so."""
    status = str(state.get("status", ""))
    silent_s = time.time() - float(state.get("heartbeat") or 0)
    if status == "running" and silent_s > _SILENT_S:
        return f"no sign of life for {silent_s:.0f} s: its run.dir resumes it"
    return status


def find_rows(run: Run, name: str | None, index: int | None, trial: int | None) -> list[Row]:
    """Rows by their name, or by their place in the input, in order.

    Args:
        run: Where to look.
        name: The row's `id`. Names may repeat, and each trial is a row.
        index: Its place; None: any.
        trial: None: any.

    Raises:
        DataError: There is none; names the nearest.
    """
    wanted = name.encode() if name is not None else None
    found: dict[RowKey, Row] = {}
    for head, line in _lines(run.folder):
        if wanted is not None and orjson.loads(head).encode() != wanted:
            continue
        row = decode_row(line)
        if index not in (None, row.index) or trial not in (None, row.trial):
            continue
        # As everywhere: a row with an answer wins, then the later one.
        if row.key not in found or row.status == "ok" or found[row.key].status == "error":
            found[row.key] = row
    if not found:
        raise DataError(_unknown(run, name, index, trial))
    return [found[key] for key in sorted(found)]


def _lines(folder: Path) -> Iterator[tuple[bytes, bytes]]:
    """Name, as JSON, and line of each whole row, in no order."""
    for part in part_files(folder):
        with part.open("rb") as lines:
            for line in lines:
                head = _ID.match(line)
                if head and line.endswith(b"}\n"):
                    yield head[1], line


def _unknown(run: Run, name: str | None, index: int | None, trial: int | None) -> str:
    asked = [
        f"--{option} {value}"
        for option, value in (("row", name), ("index", index), ("trial", trial))
        if value is not None
    ]
    message = f"{run.path}: no row with {' '.join(asked)}"
    if name is None:
        return message
    alike = _nearest(name, (orjson.loads(head) for head, _ in _lines(run.folder)))
    if name in alike:
        return f"{message}; there are others of that name: leave out --index and --trial"
    return f"{message}; the nearest: {', '.join(alike)}" if alike else f"{message}; matrix show {run.path} lists them"


def _nearest(wanted: str, names: Iterator[str]) -> list[str]:
    """The few names that are most like one, best first."""
    best: dict[str, float] = {}
    floor = _CUTOFF
    for name in names:
        likeness = _likeness(wanted, name, floor)
        if likeness > floor and name not in best:
            best[name] = likeness
            if len(best) > _NEAR:
                del best[min(best, key=best.__getitem__)]
                floor = min(best.values())
    return sorted(best, key=lambda name: (-best[name], name))


def _likeness(wanted: str, name: str, floor: float) -> float:
    """0 to 1; exact only above `floor`, since there can be a million names."""
    if wanted.casefold() in name.casefold():
        return 1 - (len(name) - len(wanted)) / (2 * len(name))
    matcher = difflib.SequenceMatcher(None, name, wanted)
    if matcher.real_quick_ratio() <= floor or matcher.quick_ratio() <= floor:
        return 0
    return matcher.ratio()


def _config(spec: Mapping[str, Any]) -> dict[str, str]:
    told = {name: value for name, key in _TOLD if (value := _at(spec, key)) is not None}
    roles = _at(spec, "agents.roles")
    if roles:
        told["roles"] = ", ".join(roles)
    return {name: str(value) for name, value in told.items()}


def _at(tree: Any, key: str) -> Any:
    for name in key.split("."):
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def _below(path: Path) -> str:
    """What to say of runs in the folders below."""
    runs = sorted({spec.parent.relative_to(path) for depth in ("*", "*/*") for spec in path.glob(f"{depth}/spec.yaml")})
    if not runs:
        return " (it has neither spec.yaml nor rows)"
    names = ", ".join(str(path / run) for run in runs[-_NEAR:])
    return f", but {len(runs)} are below it; the last: {names}"
