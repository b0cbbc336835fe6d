"""The body of a row's execution: the program, from the row's columns, and what it gets."""

from __future__ import annotations

from string import Formatter
from typing import Any

from matrix.data.columns import find, names
from matrix.data.rows import Example
from matrix.errors import ConfigError, DataError, Problem
from matrix.pipelines.prompt import shortened
from matrix.sandbox.execution import Execution
from matrix.spec.workload import ExecuteSpec

_CODE = "code"
_MISSING = object()


class ExecutionBuilder:
    """Makes the bodies of a run's executions.

    Args:
        pipeline: Where programs come from.

    Raises:
        ConfigError: The template can't be filled, whatever the row.
    """

    def __init__(self, pipeline: ExecuteSpec) -> None:
        self._keys = pipeline.text_keys
        self._template = pipeline.prompt_template
        used = {*self._keys, *(_columns_of(self._template) if self._template else [])}
        self._named = bool(used)
        self._fields = [name for name in Execution.model_fields if name not in used and name != _CODE]
        own = {"language": pipeline.language, "timeout": pipeline.timeout, "memory": pipeline.memory}
        self._own = {name: value for name, value in own.items() if value is not None}

    def build(self, example: Example) -> dict[str, Any]:
        """The body for one row, but for `model`.

        Raises:
            DataError: The row lacks a column of the program, or holds something else in it; the message names both.
        """
        columns = example.columns
        fields = {name: columns[name] for name in self._fields if columns.get(name) is not None}
        return {_CODE: self._code(example), **self._own, **fields}

    def _code(self, example: Example) -> str:
        if not self._named:
            return self._text("pipeline.text_keys=[...] would name others", example, _CODE)
        parts = [self._text(f"pipeline.text_keys={key}", example, key) for key in self._keys]
        if self._template is not None:
            parts.append(self._filled(self._template, example))
        return "\n".join(parts)

    def _text(self, where: str, example: Example, key: str) -> str:
        value = find(example.columns, key, _MISSING)
        if value is _MISSING:
            has = f"row {example.id!r} has only the columns {names(example.columns)}"
            raise DataError(f"there is no column {key!r} ({where}): {has}")
        if isinstance(value, list) and all(isinstance(line, str) for line in value):
            return "\n".join(value)
        if not isinstance(value, str):
            raise DataError(f"{where}: row {example.id!r} holds {shortened(repr(value))}, not text or a list of texts")
        return value

    def _filled(self, template: str, example: Example) -> str:
        try:
            return template.format_map(example.columns)
        except (LookupError, ValueError, AttributeError, TypeError) as error:
            what = f"there is no column {error}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
            has = f"row {example.id!r} has only the columns {names(example.columns)}"
            raise DataError(f"pipeline.prompt_template: {what}: {has}") from error


def _columns_of(template: str) -> list[str]:
    """The columns that a template of `str.format` names.

    Raises:
        ConfigError: It is none, or doesn't name one where it should.
    """
    key = "pipeline.prompt_template"
    hint = "{column} is a column's text, {{ and }} are the braces of the program"
    try:
        fields = [field for _, field, _, _ in Formatter().parse(template) if field is not None]
    except ValueError as error:
        raise ConfigError([Problem(key, template, str(error), hint)]) from error
    if any(not field or field.isdigit() for field in fields):
        raise ConfigError([Problem(key, template, "names no column where there is a {}", hint)])
    return [field.partition(".")[0].partition("[")[0] for field in fields]
