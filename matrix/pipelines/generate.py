"""The generate pipeline: one request per row and trial, then the scorers, then the journal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from matrix.client.http import ChatClient
from matrix.data.rows import Example, Row, RowError, RowKey
from matrix.errors import DataError, RequestError
from matrix.pipelines.prompt import Prompt, compile_prompt, compile_template
from matrix.pipelines.scoring_pool import ScoringPool
from matrix.spec import RunSpec, SamplingSpec

Work = tuple[Example, int]
"""A row of the data set and the number of the trial."""


class Generate:
    """The pipeline, bound to what it works with.

    Args:
        spec: The run's spec.
        client: Client of the model's servers.
        scoring: Pool of the pipeline's scorers.
        emit: Told every finished row, in the order in which they finish.
        flying: Told +1 and -1 as requests start and end.
    """

    def __init__(
        self,
        spec: RunSpec,
        client: ChatClient,
        scoring: ScoringPool,
        emit: Callable[[Row], None],
        flying: Callable[[int], None],
    ) -> None:
        self._spec = spec
        self._client = client
        self._scoring = scoring
        self._emit = emit
        self._flying = flying
        self._prompt: Prompt = compile_prompt(spec.pipeline)
        self._references = {
            scorer.label: compile_template(scorer.reference, f"pipeline.scorers.{number}.reference")
            for number, scorer in enumerate(spec.pipeline.scorers)
        }
        self._sampling = sampling_fields(spec.sampling)

    async def run(self, examples: Iterable[Example], done: Collection[RowKey]) -> None:
        """Work through the examples, `workload.concurrency` at a time; rows in `done` are left out.

        The trials of a row follow one another, so that they find its prompt in the engine's prefix cache.

        Raises:
            DataError: A row could not be written; what was in flight is dropped.
        """
        work = self._work(examples, done)

        async def worker() -> None:
            for example, trial in work:
                self._emit(await self._row(example, trial))

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._spec.workload.concurrency):
                    group.create_task(worker())
        except ExceptionGroup as several:
            raise several.exceptions[0] from several

    def _work(self, examples: Iterable[Example], done: Collection[RowKey]) -> Iterator[Work]:
        for example in examples:
            for trial in range(self._spec.trials):
                if RowKey(example.id, trial) not in done:
                    yield example, trial

    async def _row(self, example: Example, trial: int) -> Row:
        body: dict[str, Any] = {}
        try:
            references = {label: template.render(example) for label, template in self._references.items()}
            self._scoring.check(references)
            body = {"model": self._spec.model.name, "messages": self._prompt.render(example), **self._sampling}
            body["seed"] = self._spec.seed + trial
            self._flying(+1)
            try:
                response = await self._client.chat(body)
            finally:
                self._flying(-1)
            scores = await self._scoring.score(response.text, references)
        except DataError as error:
            return Row(example.id, example.index, trial, "error", body, error=RowError("data", str(error), 0))
        except RequestError as error:
            failure = RowError(error.kind, str(error), error.attempts)
            return Row(example.id, example.index, trial, "error", body, error=failure)
        return Row(example.id, example.index, trial, "ok", body, response=response, scores=scores)


def sampling_fields(sampling: SamplingSpec) -> dict[str, Any]:
    """Fields of the request body; what is None isn't sent, so that the server's default holds."""
    fields = sampling.model_dump(exclude={"extra"}, exclude_none=True)
    return {**fields, **sampling.extra}
