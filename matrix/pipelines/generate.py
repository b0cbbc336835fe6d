"""The generate pipeline: one request per row and trial, then the scorers, then the journal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator
from typing import Any

from matrix.client.gate import GateClosedError
from matrix.client.http import ModelClient
from matrix.data.readers import BadRow, Dataset
from matrix.data.rows import Example, Row, RowError
from matrix.errors import DataError, RequestError
from matrix.pipelines.prompt import compile_template
from matrix.pipelines.requests import RequestBuilder
from matrix.pipelines.scoring_pool import ScoringPool
from matrix.spec import RunSpec

Work = tuple[Example | BadRow, int]
"""A row of the data set and the number of the trial."""


class Generate:
    """The pipeline, bound to what it works with.

    Args:
        spec: The run's spec.
        client: Client of the model's servers.
        scoring: Pool of the pipeline's scorers.
        emit: Told every finished row, in the order in which they finish.
    """

    def __init__(
        self,
        spec: RunSpec,
        client: ModelClient,
        scoring: ScoringPool,
        emit: Callable[[Row], None],
    ) -> None:
        self._spec = spec
        self._client = client
        self._scoring = scoring
        self._emit = emit
        self._requests = RequestBuilder(spec.pipeline, spec.sampling)
        self._ask = client.complete if spec.pipeline.api == "completions" else client.chat
        self._references = {
            scorer.label: compile_template(scorer.reference, f"pipeline.scorers.{number}.reference")
            for number, scorer in enumerate(spec.pipeline.scorers)
        }

    async def run(self, work: Iterator[Work]) -> None:
        """Work through the rows, as many at a time as the client's gate lets through; once that is closed, no more.

        Raises:
            DataError: A row could not be read or written; what was in flight is dropped.
        """

        async def worker() -> None:
            for example, trial in work:
                await self.work_on(example, trial)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._spec.workload.concurrency.max):
                    group.create_task(worker())
        except ExceptionGroup as several:
            raise several.exceptions[0] from several

    async def work_on(self, example: Example | BadRow, trial: int) -> None:
        """Take one row to its end, an answer or an error, and emit it; one that finds the gate closed isn't begun.

        Raises:
            DataError: It could not be written.
        """
        if isinstance(example, BadRow):
            error = RowError("data", str(example), 0)
            self._emit(Row(example.id, example.index, trial, "error", {}, error=error))
            return
        try:
            row = await self._row(example, trial)
        except GateClosedError:
            return
        self._emit(row)

    async def _row(self, example: Example, trial: int) -> Row:
        body: dict[str, Any] = {}
        try:
            references = self._render_references(example) if self._references else {}
            body = {"model": self._spec.model.name, **self._requests.build(example)}
            body["seed"] = body.get("seed", self._spec.seed) + trial
            response = await self._ask(body, affinity=example.id, label=f"{example.id}/{trial}")
            scores = await self._scoring.score(response.text, references) if references else {}
        except DataError as error:
            return Row(example.id, example.index, trial, "error", body, error=RowError("data", str(error), 0))
        except RequestError as error:
            failure = RowError(error.kind, str(error), error.attempts)
            return Row(example.id, example.index, trial, "error", body, error=failure)
        return Row(example.id, example.index, trial, "ok", body, response=response, scores=scores)

    def _render_references(self, example: Example) -> dict[str, str]:
        references = {label: template.render(example) for label, template in self._references.items()}
        self._scoring.check(references)
        return references


def open_work(dataset: Dataset, trials: int, done: Collection[tuple[int, int]]) -> Iterator[Work]:
    """What is left to do, in order of the input.

    The trials of a row follow one another, so that they find its prompt in the engine's prefix cache.
    """
    for example in dataset.examples:
        for trial in range(trials):
            if (example.index, trial) not in done:
                yield example, trial
