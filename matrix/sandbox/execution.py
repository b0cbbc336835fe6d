"""What is run, and what came of it: the bodies of `/v1/execute`."""

from __future__ import annotations

import base64
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Status = Literal["ok", "failed", "error", "timeout", "memory", "output_limit", "killed"]
"""`ok`: exit code 0, or its test passed; `failed`: its test did not; `error`: another exit code, or an exception;
`killed`: by a signal that wasn't ours."""


def _is_base64(text: str) -> str:
    base64.b64decode(text, validate=True)
    return text


class Encoded(BaseModel):
    """A file that isn't UTF-8."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base64: Annotated[str, AfterValidator(_is_base64)]


Content = str | Encoded


class Execution(BaseModel):
    """A program and what it gets.

    Attributes:
        code: The program's text.
        language: One of `engine.languages`.
        stdin: What it reads.
        args: Arguments of its command line.
        files: Files in its folder, by relative path.
        outputs: Patterns (`*.txt`, `out/*`) of files in its folder that come back.
        timeout: Seconds that it may take; None: `engine.timeout_s`.
        memory: Megabytes that it may take; None: `engine.memory_mb`.
        test: Python code that judges it, in a sandbox of its own, where the functions and classes of `code` can be
            called by their names. It passes if it runs to its end, and if it has a function `check`, that does with
            `entry_point`.
        entry_point: Name of what `check` gets.
        prelude: Python code that comes before `test` there, such as imports.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    code: str
    language: str = "python"
    stdin: str = ""
    args: list[str] = []
    files: dict[Annotated[str, Field(min_length=1, max_length=1024)], Content] = {}
    outputs: list[str] = []
    timeout: float | None = Field(default=None, gt=0)
    memory: int | None = Field(default=None, gt=0)
    test: str | None = None
    entry_point: str | None = None
    prelude: str = ""

    @model_validator(mode="after")
    def _has_a_test(self) -> Self:
        if self.test is None and (self.entry_point is not None or self.prelude):
            raise ValueError("entry_point and prelude belong to a test, and there is none")
        if self.test is not None and not self.test.strip():
            raise ValueError("the test is empty: any program would pass it")
        return self


class Executed(BaseModel):
    """What came of a program.

    Attributes:
        status: In a word.
        exit_code: Of the program; None if a signal ended it.
        signal: Name of the signal that ended it (`SIGSEGV`).
        exception: Last line of a Python program's traceback (`ValueError: no`), if that ended it.
        stdout: What it wrote; bytes that aren't UTF-8 are replaced.
        stderr: As above.
        files: Those that `outputs` asked for.
        files_left_out: Those that did not come back, and why.
        passed: Whether its test passed; None without one. Worked out where the program can't reach.
        failure: Why it did not pass.
        queue_s: Seconds that it waited for a worker.
        wall_s: Seconds that it ran.
        cpu_s: Seconds of CPU time, of all its processes.
        memory_mb: Peak memory of its largest process.
    """

    status: Status
    exit_code: int | None = None
    signal: str | None = None
    exception: str | None = None
    stdout: str = ""
    stderr: str = ""
    files: dict[str, Content] = {}
    files_left_out: dict[str, str] = {}
    passed: bool | None = None
    failure: str | None = None
    queue_s: float = 0.0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    memory_mb: float = 0.0
