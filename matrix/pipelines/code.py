"""The scorer `code`: answers are programs, which an app with `engine=sandbox` runs and tests (docs/sandbox.md)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from matrix.data.rows import Score
from matrix.errors import DataError
from matrix.pipelines.programs import before, last_defined, program
from matrix.pipelines.references import CodeTest
from matrix.pipelines.scorers import ANSWER_LIMIT
from matrix.sandbox.execution import Executed, Execution

if TYPE_CHECKING:
    from matrix.client.http import ModelClient

NO_CODE = "no_code"
"""Status of an answer that holds no program; the others are those of `Executed`."""


def check_test(test: CodeTest) -> None:
    """Check that a row has something to test programs with.

    Raises:
        DataError: It hasn't.
    """
    if not test.reference.strip():
        raise DataError(
            f"scorer {test.scorer.label}: the test is empty; check the template pipeline.scorers.N.reference and the "
            "row's columns"
        )


async def score_code(client: ModelClient, texts: Sequence[str], test: CodeTest) -> Score:
    """Run the programs that answers hold; equal ones once.

    Args:
        client: Of the app that runs them.
        texts: Answers to one question.
        test: What they are tested with.

    Returns:
        In `answers` what came of each in a line, in `statuses` in a word.

    Raises:
        RequestError: The app did not run one.
    """
    programs = [
        program(text, context=test.context, entry_point=test.entry_point, test=test.reference) for text in texts
    ]
    different = [code for code in dict.fromkeys(programs) if code is not None]
    outcomes = dict(zip(different, await _run_all(client, different, test), strict=True))
    executed = [None if code is None else outcomes[code] for code in programs]
    return Score(
        [float(one is not None and one.passed is True) for one in executed],
        [None if one is None else _said(one) for one in executed],
        [NO_CODE if one is None else one.status for one in executed],
    )


async def _run_all(client: ModelClient, programs: Sequence[str], test: CodeTest) -> list[Executed]:
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_run(client, execution(code, test))) for code in programs]
    except ExceptionGroup as several:
        raise several.exceptions[0] from several
    return [task.result() for task in tasks]


async def _run(client: ModelClient, execution: Execution) -> Executed:
    # It belongs to a row that was let in before, and whose answers are paid for: a gate that closes must not lose them.
    body = execution.model_dump(exclude_defaults=True)
    response = await client.execute(body, label="a program", begun=True)
    return Executed.model_validate(response.executed)


def execution(code: str, test: CodeTest) -> Execution:
    """A program with its test.

    What a test calls beside the program are functions that stand before the one that is asked for: they come from the
    data set, whatever the program makes of them.
    """
    entry_point = test.entry_point or last_defined(test.context)
    return Execution(
        code=code,
        test=test.reference,
        entry_point=entry_point or None,
        prelude=f"{test.prelude}\n{before(test.context, entry_point)}".strip("\n"),
        timeout=test.scorer.timeout_s,
        memory=test.scorer.memory_mb,
    )


def _said(executed: Executed) -> str:
    """What came of a program, in a line."""
    if executed.passed:
        return "passed"
    why = executed.failure or executed.exception or ""
    return " ".join(f"{executed.status}: {why}".split())[:ANSWER_LIMIT] if why else executed.status
