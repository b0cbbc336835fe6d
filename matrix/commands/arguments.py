"""What a command was typed with: its own arguments, apart from the overrides of a config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matrix.errors import ConfigError, Problem, did_you_mean


def split(
    arguments: Sequence[str], own: Mapping[str, str | None], *, overrides: bool, switches: Sequence[str] = ()
) -> tuple[dict[str, str], list[str]]:
    """Take a command's own `key=value` arguments out of what was typed.

    Args:
        arguments: As typed.
        own: Names of its own arguments, each with its default; None: it has to be given.
        overrides: Whether overrides of a config may follow.
        switches: Its `--options`, for who mistypes one; those that were typed right are taken out already.

    Returns:
        Its own arguments, and the rest.

    Raises:
        ConfigError: One is missing, given twice, or unknown.
    """
    found: dict[str, str] = {}
    rest = []
    problems = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key in own:
            if key in found:
                problems.append(Problem(key, value, "given twice"))
            found[key] = value
        elif not overrides or argument.startswith("-"):
            problems.append(Problem(argument, None, "no such argument", did_you_mean(key, [*own, *switches])))
        else:
            rest.append(argument)
    problems += [
        Problem(key, None, "has to be given", f"{key}=...")
        for key, default in own.items()
        if default is None and key not in found
    ]
    if problems:
        raise ConfigError(problems, "Nothing was started.")
    return {key: default for key, default in own.items() if default is not None} | found, rest


def flag(own: Mapping[str, str], key: str) -> bool:
    """A yes or no.

    Raises:
        ConfigError: It is neither.
    """
    value = own[key].lower()
    if value not in ("true", "false"):
        raise ConfigError([Problem(key, own[key], "should be true or false")], "Nothing was started.")
    return value == "true"


def number(own: Mapping[str, str], key: str) -> float:
    """A number above 0.

    Raises:
        ConfigError: It isn't one.
    """
    try:
        value = float(own[key])
    except ValueError:
        value = 0.0
    if not value > 0:
        raise ConfigError([Problem(key, own[key], "should be a number above 0")], "Nothing was started.")
    return value
