"""Templates over a row's columns: the prompt of a request, and the reference that a scorer compares with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from matrix.errors import ConfigError, DataError, Problem

if TYPE_CHECKING:
    import jinja2

    from matrix.data.rows import Example
    from matrix.spec.workload import GenerateSpec


@dataclass(frozen=True, slots=True)
class Template:
    """A compiled template.

    Attributes:
        key: Dotted path of the config key that it was read from; errors name it.
        compiled: Jinja's template.
    """

    key: str
    compiled: jinja2.Template

    def render(self, example: Example) -> str:
        """Fills the template with a row.

        The template sees every column as a variable, and all of them as the dict `row` (for names that are no
        identifiers: `row["Correct Answer"]`).

        Raises:
            DataError: The template asks for a column that the row lacks, or fails on a value; the message names the
                template's key, the row and the columns it has.
        """
        import jinja2

        try:
            return self.compiled.render({**example.columns, "row": example.columns})
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            columns = ", ".join(map(str, example.columns)) or "none"
            raise DataError(f"{self.key}: {error} (row {example.id!r} has the columns {columns})") from error


@dataclass(frozen=True, slots=True)
class Prompt:
    """The chat messages of a request: templates, or the column that holds them ready-made.

    Attributes:
        messages: Role and template of each message; empty in the second case.
        messages_key: The column with ready messages; None in the first case.
    """

    messages: tuple[tuple[str, Template], ...]
    messages_key: str | None

    def render(self, example: Example) -> list[dict[str, Any]]:
        """Messages for one row, as the OpenAI chat API takes them.

        Raises:
            DataError: See `Template.render`; or the column of ready messages is missing or holds something else.
        """
        if self.messages_key is not None:
            return _ready_messages(self.messages_key, example)
        return [{"role": role, "content": template.render(example)} for role, template in self.messages]


def compile_template(source: str, key: str) -> Template:
    """Compiles one template; `key` is the config key that holds it.

    Templates run in Jinja's immutable sandbox: a config is data, and a data set's columns are strangers' words.

    Raises:
        ConfigError: The template has a syntax error.
    """
    import jinja2

    try:
        return Template(key, _environment().from_string(source))
    except jinja2.TemplateSyntaxError as error:
        problem = Problem(key, _shortened(source), f"not a valid Jinja template: {error.message}, line {error.lineno}")
        raise ConfigError([problem]) from error


def compile_prompt(spec: GenerateSpec) -> Prompt:
    """Compiles the prompt of a pipeline.

    Raises:
        ConfigError: Templates have syntax errors; it lists all of them.
    """
    messages: list[tuple[str, Template]] = []
    problems: list[Problem] = []
    for number, message in enumerate(spec.prompt):
        try:
            messages.append((message.role, compile_template(message.content, f"pipeline.prompt.{number}.content")))
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(problems)
    return Prompt(tuple(messages), spec.messages_key)


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    import jinja2.sandbox

    return jinja2.sandbox.ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=False)


def _ready_messages(column: str, example: Example) -> list[dict[str, Any]]:
    if column not in example.columns:
        columns = ", ".join(map(str, example.columns)) or "none"
        raise DataError(f"pipeline.messages_key={column}: row {example.id!r} has only the columns {columns}")
    messages = example.columns[column]
    if not (
        isinstance(messages, list)
        and messages
        and all(isinstance(message, dict) and isinstance(message.get("role"), str) for message in messages)
    ):
        raise DataError(
            f"pipeline.messages_key={column}: row {example.id!r} holds {_shortened(repr(messages))}, "
            "not a list of chat messages such as {'role': 'user', 'content': '...'}"
        )
    return messages


def _shortened(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else f"{text[:limit]}..."
