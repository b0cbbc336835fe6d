"""What scorers judge a row by: templates over its columns, rendered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matrix.errors import ConfigError, Problem
from matrix.pipelines.prompt import Template, compile_template
from matrix.spec.workload import CodeScorerSpec, ScorerSpec

if TYPE_CHECKING:
    from matrix.data.rows import Example


@dataclass(frozen=True, slots=True)
class CodeTest:
    """What programs are judged by.

    Attributes:
        scorer: Who asks for it.
        reference: Python code that tests them.
        context: What the answer goes on from.
        entry_point: Name of what is asked for; empty: unknown.
        prelude: Code before the test.
    """

    scorer: CodeScorerSpec
    reference: str
    context: str
    entry_point: str
    prelude: str


Reference = str | CodeTest


class References:
    """The compiled templates of scorers.

    Args:
        scorers: The scorers.
        key: Where the config has them (`pipeline.scorers`); errors name it.

    Raises:
        ConfigError: Templates have syntax errors; all are named.
    """

    def __init__(self, scorers: Sequence[ScorerSpec], key: str) -> None:
        self._templates: dict[str, dict[str, Template]] = {}
        self._scorers = {scorer.label: scorer for scorer in scorers}
        problems: list[Problem] = []
        for number, scorer in enumerate(scorers):
            templates = self._templates[scorer.label] = {}
            for field, text in scorer.templates.items():
                try:
                    templates[field] = compile_template(text, f"{key}.{number}.{field}")
                except ConfigError as error:
                    problems += error.problems
        if problems:
            raise ConfigError(problems)

    @property
    def labels(self) -> list[str]:
        """Of the scorers."""
        return list(self._templates)

    def render(self, example: Example, labels: Sequence[str] | None = None) -> Mapping[str, Reference]:
        """The references for a row, by label; those of all scorers, or of some.

        Raises:
            DataError: The row lacks a column that one needs.
        """
        return {label: self._render(label, example) for label in labels or self.labels}

    def _render(self, label: str, example: Example) -> Reference:
        rendered = {field: template.render(example) for field, template in self._templates[label].items()}
        scorer = self._scorers[label]
        return CodeTest(scorer, **rendered) if isinstance(scorer, CodeScorerSpec) else rendered["reference"]
