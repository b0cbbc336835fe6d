"""A domain of tau2-bench, read from its folder: policy.md, db.json and, if the user has tools too, user_db.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from matrix.agents.teams.tau2.database import Database, Tables
from matrix.agents.teams.tau2.kit import Requestor, Toolkit
from matrix.agents.teams.tau2.library import LibraryTools
from matrix.agents.teams.tau2.mock import MockTools, MockUserTools
from matrix.agents.teams.tau2.retail import RetailTools
from matrix.errors import DataError, did_you_mean

TOOLS: dict[str, dict[Requestor, type[Toolkit]]] = {
    "library": {"assistant": LibraryTools},
    "mock": {"assistant": MockTools, "user": MockUserTools},
    "retail": {"assistant": RetailTools},
}
"""Toolkits of agent and user, by the domain's name."""

_FILES: dict[Requestor, str] = {"assistant": "db.json", "user": "user_db.json"}


@dataclass(frozen=True)
class Domain:
    """What all conversations of a domain share.

    Attributes:
        policy: What the agent has to keep to.
        tools: Toolkits of the sides that have tools.
        tables: Databases of these sides. Nobody writes to them.
    """

    policy: str
    tools: dict[Requestor, type[Toolkit]]
    tables: dict[Requestor, Tables]

    def kits(self) -> dict[Requestor, Toolkit]:
        """Tools over databases of their own, as they are at first."""
        return {side: kit(Database(self.tables[side])) for side, kit in self.tools.items()}

    def specs(self, side: Requestor) -> list[dict[str, Any]]:
        """Tools of a side as OpenAI defines them."""
        return self.tools[side].specs() if side in self.tools else []


@lru_cache(maxsize=8)
def load_domain(data: str, name: str | None = None) -> Domain:
    """Read a domain, once in a process.

    Args:
        data: Its folder; `package:PACKAGE/FOLDER` is one inside an installed package.
        name: Which tools belong to it; None: those of the folder's name.

    Raises:
        DataError: A file isn't there or isn't what it should be, or there are no tools of that name.
    """
    folder = _folder(data)
    name = name or folder.name
    if name not in TOOLS:
        raise DataError(f"{data}: no tools for a domain '{name}' ({did_you_mean(name, sorted(TOOLS))})")
    tools = {side: kit for side, kit in TOOLS[name].items() if side == "assistant" or (folder / _FILES[side]).is_file()}
    return Domain(
        policy=_read(folder / "policy.md").strip(),
        tools=tools,
        tables={side: _tables(folder / _FILES[side], kit) for side, kit in tools.items()},
    )


def _folder(data: str) -> Path:
    if not data.startswith("package:"):
        return Path(data).expanduser()
    package, _, folder = data.removeprefix("package:").partition("/")
    try:
        found = find_spec(package)
    except ImportError:
        found = None
    if found is None or not found.submodule_search_locations:
        raise DataError(f"{data}: no installed package '{package}' (package:PACKAGE/FOLDER)")
    return Path(found.submodule_search_locations[0]) / folder


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error


def _tables(path: Path, kit: type[Toolkit]) -> Tables:
    try:
        data = json.loads(_read(path))
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from error
    missing = [name for name in kit.tables if not isinstance(data, dict) or not isinstance(data.get(name), dict)]
    if missing:
        raise DataError(f"{path}: lacks the table '{missing[0]}' of {kit.__name__}")
    return {table: {key: kit.whole(table, record) for key, record in data[table].items()} for table in kit.tables}
