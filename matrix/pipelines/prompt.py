"""What is asked for a row: messages or a text, from templates over its columns or from a column that holds them.

The reference that a scorer compares with is such a template too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from matrix.data.columns import find, names
from matrix.data.llama3 import parse_llama3
from matrix.errors import ConfigError, DataError, Problem, did_you_mean

if TYPE_CHECKING:
    import jinja2

    from matrix.data.rows import Example
    from matrix.spec.workload import GenerateSpec


_MISSING = object()
_VALUES_DO = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError)
"""What an expression raises that doesn't fit a value, beside Jinja's own errors."""


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
        except (jinja2.TemplateError, *_VALUES_DO) as error:
            columns = names(example.columns)
            raise DataError(f"{self.key}: {error} (row {example.id!r} has the columns {columns})") from error


@dataclass(frozen=True, slots=True)
class Column:
    """Where a row keeps what is asked.

    Attributes:
        setting: The config's words for it; errors name it.
        paths: Key paths; the first at which a row has a value counts.
        messages: Whether that may be chat messages.
        text_at: Those of the paths at which it may be text.
    """

    setting: str
    paths: tuple[str, ...]
    messages: bool = True
    text_at: tuple[str, ...] = ()

    def value(self, example: Example) -> str | list[dict[str, Any]]:
        """The text or the messages of a row.

        Raises:
            DataError: The row has no such column, or it holds something else.
        """
        found = [(path, find(example.columns, path, _MISSING)) for path in self.paths]
        there = [(path, value) for path, value in found if value is not _MISSING]
        if not there:
            raise DataError(f"{self.setting}: row {example.id!r} has only the columns {names(example.columns)}")
        # An empty cell of a csv is no value either.
        path, value = next(((path, value) for path, value in there if value is not None and value != ""), there[0])
        if path in self.text_at and isinstance(value, str) and value.strip():
            return value
        if self.messages and _are_messages(value):
            return [_without_nulls(message) for message in value]
        wanted = [
            *(["text"] if path in self.text_at else []),
            *(["a list of chat messages such as {'role': 'user', 'content': '...'}"] if self.messages else []),
        ]
        raise DataError(f"{self.setting}: row {example.id!r} holds {shortened(repr(value))}, not {' or '.join(wanted)}")


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked: by templates, or by a column.

    Attributes:
        templates: Role and content of each message; empty where a column has them.
        column: That column.
        system_prompt: Takes the place of the first system message, or comes before all; None leaves them as they are.
    """

    templates: tuple[tuple[str, Template], ...]
    column: Column
    system_prompt: str | None = None

    def render(self, example: Example) -> list[dict[str, Any]]:
        """Messages for one row, as the OpenAI chat API takes them; the caller's own list.

        A text with Llama 3 header tokens gives the messages that it holds; any other becomes one user message.

        Raises:
            DataError: See `Template.render`, `Column.value` and `parse_llama3`.
        """
        if self.templates:
            messages = [{"role": role, "content": template.render(example)} for role, template in self.templates]
        else:
            value = self.column.value(example)
            messages = self._dialogue(value, example) if isinstance(value, str) else value
        return messages if self.system_prompt is None else _with_system(messages, self.system_prompt)

    def render_text(self, example: Example) -> str:
        """Text for one row, as the completions API takes it: header tokens and all.

        Raises:
            DataError: See `Template.render` and `Column.value`.
        """
        if self.templates:
            return self.templates[0][1].render(example)
        return str(self.column.value(example))

    def _dialogue(self, text: str, example: Example) -> list[dict[str, Any]]:
        try:
            return [dict(message) for message in parse_llama3(text) or [{"role": "user", "content": text}]]
        except DataError as error:
            raise DataError(f"{self.column.setting}: row {example.id!r}: {error}") from error


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
        problem = Problem(key, shortened(source), f"not a valid Jinja template: {error.message}, line {error.lineno}")
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
    return Prompt(tuple(messages), _column(spec), spec.system_prompt)


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    import jinja2.sandbox

    return jinja2.sandbox.ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=False)


def _column(spec: GenerateSpec) -> Column:
    """The column that the spec names, or those to look for."""
    if spec.messages_key is not None:
        return Column(f"pipeline.messages_key={spec.messages_key}", (spec.messages_key,))
    if spec.text_key is not None:
        return Column(f"pipeline.text_key={spec.text_key}", (spec.text_key,), messages=False, text_at=(spec.text_key,))
    text_at = ("text", "prompt")
    paths = ("messages", "request.messages", *text_at) if spec.api == "chat" else text_at
    keys = "text_key or messages_key" if spec.api == "chat" else "text_key"
    setting = f"looked for {', '.join(paths)} (pipeline.{keys} names another column)"
    return Column(setting, paths, messages=spec.api == "chat", text_at=text_at)


def _are_messages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(message, dict) and isinstance(message.get("role"), str) for message in value)
    )


def _without_nulls(message: dict[str, Any]) -> dict[str, Any]:
    """Parquet and `datasets` give every message all fields that any message has, and servers refuse most nulls."""
    return {key: value for key, value in message.items() if value is not None or key == "content"}


def _with_system(messages: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    system = {"role": "system", "content": text}
    for number, message in enumerate(messages):
        if message["role"] == "system":
            return [*messages[:number], system, *messages[number + 1 :]]
    return [system, *messages]


def shortened(text: str, limit: int = 80) -> str:
    """A text for messages."""
    return text if len(text) <= limit else f"{text[:limit]}..."


def compile_condition(source: str, key: str, names: Collection[str]) -> Callable[[Mapping[str, Any]], bool]:
    """Compiles a Jinja expression; names that aren't there are false in it, and can't be compared.

    Args:
        source: The expression, such as `scratch.agreed and turns > 2`.
        key: Config key that it was read from.
        names: What it may speak of.

    Returns:
        What tells whether it holds. It raises a DataError where the expression fails on what it sees.

    Raises:
        ConfigError: It has a syntax error, or speaks of something else.
    """
    import jinja2.meta
    import jinja2.sandbox

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment()
    try:
        expression = environment.compile_expression(source)
        unknown = jinja2.meta.find_undeclared_variables(environment.parse(f"{{{{ {source} }}}}")) - set(names)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError([Problem(key, shortened(source), f"not a Jinja expression: {error.message}")]) from error

    if unknown:
        name = min(unknown)
        raise ConfigError([Problem(key, shortened(source), f"there is no {name!r} here", did_you_mean(name, [*names]))])

    def holds(seen: Mapping[str, Any]) -> bool:
        try:
            return bool(expression(**seen))
        except (jinja2.TemplateError, *_VALUES_DO) as error:
            raise DataError(f"{key}: {error} (in {shortened(source)})") from error

    return holds
