"""The pipelines: one request per row and trial, to a model or a sandbox, then the scorers, then the journal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, Self

from matrix.client.gate import GateClosedError
from matrix.client.http import Asked, ModelClient
from matrix.data.readers import BadRow
from matrix.data.rows import Example, Row, RowError
from matrix.data.work import Work
from matrix.errors import DataError, RequestError
from matrix.pipelines.executions import ExecutionBuilder
from matrix.pipelines.references import References
from matrix.pipelines.requests import RequestBuilder
from matrix.pipelines.scoring_pool import ScoringPool
from matrix.spec import ExecuteSpec, PipelineSpec, RunSpec

_AHEAD = 64
"""Rows that wait at the gate at most, of those that were begun one by one."""


class Generate:
    """The pipeline, bound to what it works with.

    Args:
        spec: The run's spec.
        pipeline: Its pipeline.
        client: Client of the servers that are asked.
        scoring: Pool of the pipeline's scorers.
        emit: Told every finished row, in the order in which they finish.
    """

    def __init__(
        self,
        spec: RunSpec,
        pipeline: PipelineSpec,
        client: ModelClient,
        scoring: ScoringPool,
        emit: Callable[[Row], None],
    ) -> None:
        self._spec = spec
        self._client = client
        self._scoring = scoring
        self._emit = emit
        self._tasks: set[asyncio.Task[None]] = set()
        self._affinity = spec.workload.affinity
        self._requests: RequestBuilder | ExecutionBuilder
        self._ask: Callable[..., Asked]
        if isinstance(pipeline, ExecuteSpec):
            self._requests, self._ask = ExecutionBuilder(pipeline), client.execute
        else:
            self._requests = RequestBuilder(pipeline, spec.sampling)
            self._ask = client.complete if pipeline.api == "completions" else client.chat
        self._references = References(pipeline.scorers, "pipeline.scorers")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def rows(self) -> int:
        """Rows that were begun one by one and aren't over."""
        return len(self._tasks)

    @property
    def capacity(self) -> int:
        """Rows that may be in flight now; a few more than requests, so that none is waited for."""
        limit = self._client.gate.limit.limit
        return limit + min(_AHEAD, max(1, limit // 4))

    def begin(self, work: Work, over: Callable[[BaseException | None], None]) -> None:
        """Take a row in; `over` is told when it is finished, with what kept it from being written, if anything did."""
        task = asyncio.get_running_loop().create_task(self.work_on(work))
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled():
                over(task.exception())

        task.add_done_callback(ended)

    async def run(self, work: Iterator[Work]) -> None:
        """Work through the rows, as many at a time as the client's gate lets through; once that is closed, no more.

        Raises:
            DataError: A row could not be read or written; what was in flight is dropped.
        """

        async def worker() -> None:
            for one in work:
                await self.work_on(one)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._spec.workload.concurrency.max):
                    group.create_task(worker())
        except ExceptionGroup as several:
            raise several.exceptions[0] from several

    async def work_on(self, work: Work) -> None:
        """Take one row to its end, an answer or an error, and emit it; one that finds the gate closed isn't begun.

        Raises:
            DataError: It could not be written.
        """
        example, trial = work.example, work.trial
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
            references = self._references.render(example)
            self._scoring.check(references)
            body = {"model": self._spec.model.name, **self._requests.build(example)}
            if isinstance(self._requests, RequestBuilder):
                body["seed"] = body.get("seed", self._spec.seed) + trial
            response = await self._ask(
                body, affinity=example.id if self._affinity else None, label=f"{example.id}/{trial}"
            )
            scores = await self._scoring.score(response.text, references) if references else {}
        except DataError as error:
            return Row(example.id, example.index, trial, "error", body, error=RowError("data", str(error), 0))
        except RequestError as error:
            failure = RowError(error.kind, str(error), error.attempts)
            return Row(example.id, example.index, trial, "error", body, error=failure)
        return Row(example.id, example.index, trial, "ok", body, response=response, scores=scores)
