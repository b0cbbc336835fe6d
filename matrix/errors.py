"""The errors of matrix, one class per boundary.

Everything that a user can cause or meet is normalised into one of these where it crosses into matrix: composing the
config, bringing up a cluster, deploying an app, sending a request, reading data. Inside, nothing is caught.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass


class MatrixError(Exception):
    """Something went wrong that the user can understand from the message alone.

    Attributes:
        exit_code: What the process exits with when nothing handles the error.
    """

    exit_code = 1


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a config.

    Attributes:
        key: Dotted path of the key, as it is typed on the command line (`sampling.temperature`).
        value: What the key holds; `None` where there is no value to show.
        message: What is wrong with it, in a few words.
        hint: The way out, such as the nearest valid name; empty if there is none.
    """

    key: str
    value: object
    message: str
    hint: str = ""

    def __str__(self) -> str:
        shown = "" if self.value is None else f"={self.value}"
        return f"{self.key}{shown}: {self.message}" + (f" ({self.hint})" if self.hint else "")


class ConfigError(MatrixError):
    """The config is wrong; raised before anything was started. Carries every problem that was found."""

    exit_code = 2

    def __init__(
        self, problems: Sequence[Problem], title: str = "The config has problems; nothing was started."
    ) -> None:
        self.problems = tuple(problems)
        self._title = title
        super().__init__("\n".join([title, *(f"  {problem}" for problem in self.problems)]))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[tuple[Problem, ...], str]]:
        """Rebuilt from its problems where it comes from another process."""
        return type(self), (self.problems, self._title)


class ClusterError(MatrixError):
    """The Ray cluster could not be started, reached or kept."""


class AppError(MatrixError):
    """An app could not be deployed or died: carries the engine's own last lines where there are any."""


class ToolError(MatrixError):
    """A server of tools could not be started or reached: carries its own last lines where there are any."""


class RequestError(MatrixError):
    """A request failed for good, after its retries.

    Attributes:
        kind: Short machine-readable class of the failure: `timeout`, `connection`, `http_400`, `bad_response`, ...
        attempts: How many times it was tried.
    """

    def __init__(self, kind: str, message: str, attempts: int = 1) -> None:
        super().__init__(message)
        self.kind = kind
        self.attempts = attempts


class DataError(MatrixError):
    """A data set or a run dir cannot be read or written."""


def did_you_mean(name: str, valid: Sequence[str], prefix: str = "") -> str:
    """The way out for a wrong name: the nearest valid one, else all of them."""
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    if near:
        return f"did you mean {prefix}{near[0]}?"
    return "one of: " + ", ".join(sorted(valid)[:40])
