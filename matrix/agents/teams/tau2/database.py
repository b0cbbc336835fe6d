"""A domain's database as one conversation sees it: the one that all share, and what differs from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any, TypeAlias

Record: TypeAlias = dict[str, Any]
Tables: TypeAlias = Mapping[str, Mapping[str, Record]]


class Database:
    """Tables of records by key. A record is copied when it is first edited, so thousands of rows share one database.

    Args:
        shared: What all conversations begin with. Nobody writes to it.
    """

    def __init__(self, shared: Tables) -> None:
        self._shared = shared
        self._own: dict[str, dict[str, Record]] = {}

    def find(self, table: str, key: str) -> Record | None:
        """A record to read; None if there is none."""
        own = self._own.get(table, {})
        return own[key] if key in own else self._shared.get(table, {}).get(key)

    def items(self, table: str) -> Iterator[tuple[str, Record]]:
        """All records to read, new ones last."""
        own, shared = self._own.get(table, {}), self._shared.get(table, {})
        yield from ((key, own.get(key, record)) for key, record in shared.items())
        yield from ((key, record) for key, record in own.items() if key not in shared)

    def count(self, table: str) -> int:
        """How many records a table has."""
        shared = self._shared.get(table, {})
        return len(shared) + sum(1 for key in self._own.get(table, {}) if key not in shared)

    def edit(self, table: str, key: str) -> Record:
        """A record to write to; it has to be there."""
        own = self._own.setdefault(table, {})
        if key not in own:
            own[key] = deepcopy(self._shared[table][key])
        return own[key]

    def put(self, table: str, key: str, record: Record) -> None:
        """Add a record, or replace one."""
        self._own.setdefault(table, {})[key] = record

    def merge(self, tables: Tables) -> None:
        """Lay data over what is there: fields of records one by one, lists as a whole."""
        for table, records in tables.items():
            for key, fields in records.items():
                known = self.find(table, key) is not None
                self.put(table, key, _merged(self.edit(table, key) if known else {}, fields))

    def changes(self) -> dict[str, dict[str, Record]]:
        """Records that differ from the shared ones. Two databases over the same one are equal if these are."""
        found = {}
        for table, own in self._own.items():
            shared = self._shared.get(table, {})
            changed = {key: record for key, record in own.items() if key not in shared or record != shared[key]}
            if changed:
                found[table] = changed
        return found


def _merged(below: Record, above: Mapping[str, Any]) -> Record:
    result = dict(below)
    for name, value in above.items():
        inner = result.get(name)
        result[name] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else deepcopy(value)
    return result
