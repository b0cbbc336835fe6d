"""Runs scorers beside the event loop: the cheap ones at once, those that may hang in processes that can be killed.

A model's answer is hostile by accident: `10**10**10**10` keeps SymPy inside one C call that no signal interrupts. Only
the end of the process ends it, so `math` runs in workers (pebble) under a hard limit of time and memory.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any, Self

from matrix.data.rows import Score
from matrix.errors import AppError
from matrix.pipelines.code import check_test, score_code
from matrix.pipelines.references import CodeTest, Reference
from matrix.pipelines.scorers import SCORERS, UNREAD, Verdict, to_score

if TYPE_CHECKING:
    from pebble import ProcessPool

    from matrix.client.http import ModelClient
    from matrix.spec.workload import ScorerSpec

_NO_CLIENTS: Mapping[str, ModelClient] = {}

START_LIMIT_S = 120
"""Seconds that a worker may take to start; a second or two on an idle machine, most of it importing SymPy."""

MEMORY_LIMIT_BYTES = 2 * 2**30
"""Address space of a worker; it needs 0.1 GB. An answer that needs more fails like one that takes too long."""

TASKS_PER_WORKER = 5_000
"""Texts that a worker judges before a fresh one replaces it: SymPy's caches only grow."""


class ScoringPool:
    """Scores the answers of rows. Use it as an async context manager; any number of rows at the same time.

    Workers start when the context is entered, which doesn't wait for them, and only if a scorer needs them. They
    ignore Ctrl-C, which is the driver's to handle, and die with the driver, even if that is killed. The thread that
    enters the context has to live as long as it, since Linux ties them to that thread.

    Attributes:
        timed_out: Texts that got no verdict because judging them took too long, or too much memory.
    """

    def __init__(
        self,
        scorers: Sequence[ScorerSpec],
        workers: int = 1,
        timeout_s: float = 10,
        clients: Mapping[str, ModelClient] = _NO_CLIENTS,
    ) -> None:
        """Prepares a pool; nothing runs yet.

        Args:
            scorers: Scorers by label.
            workers: Processes for the scorers that may hang.
            timeout_s: Seconds that judging one text may take there.
            clients: By app, for programs; whoever made them opens and closes them.
        """
        self.timed_out = 0
        self._kinds = {scorer.label: scorer.kind for scorer in scorers}
        self._clients = clients
        self._workers = workers
        self._timeout_s = timeout_s
        self._free = asyncio.Semaphore(workers)
        self._pool: ProcessPool | None = None

    async def __aenter__(self) -> Self:
        """Starts the workers, if a scorer needs them."""
        if any(kind in SCORERS and SCORERS[kind].killable for kind in self._kinds.values()):
            self._pool = self._start_workers()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Ends the workers, also those in the middle of a text."""
        if self._pool is not None:
            await asyncio.to_thread(_stop_workers, self._pool)
            self._pool = None

    async def score(self, texts: Sequence[str], references: Mapping[str, Reference]) -> dict[str, Score]:
        """Judges the answers of one row.

        Args:
            texts: The row's answers.
            references: The rendered reference of each scorer that is wanted, by label.

        Returns:
            A score by label; value 0 and answer None for a text that took too long.

        Raises:
            DataError: A reference holds no answer.
            RequestError: An app did not run a program.
            AppError: Workers don't start, or die as soon as they did.
        """
        return {
            label: await self._run(texts, reference)
            if isinstance(reference, CodeTest)
            else await self._score(self._kinds[label], texts, reference)
            for label, reference in references.items()
        }

    def check(self, references: Mapping[str, Reference]) -> None:
        """Checks that the references of a row hold answers, so that no request is paid for in vain.

        Raises:
            DataError: One doesn't.
        """
        for label, reference in references.items():
            if isinstance(reference, CodeTest):
                check_test(reference)
            else:
                SCORERS[self._kinds[label]].gold(reference)

    async def _run(self, texts: Sequence[str], test: CodeTest) -> Score:
        return await score_code(self._clients[test.scorer.app], texts, test)

    async def _score(self, kind: str, texts: Sequence[str], reference: str) -> Score:
        scorer = SCORERS[kind]
        gold = scorer.gold(reference)
        if not scorer.killable:
            return to_score([scorer.judge(text, gold) for text in texts])
        return to_score(await asyncio.gather(*(self._judge_in_worker(kind, text, gold) for text in texts)))

    async def _judge_in_worker(self, kind: str, text: str, gold: Any) -> Verdict:
        # No more texts than workers: a text that waits in line waits here, where it can be cancelled.
        async with self._free:
            for _ in range(2):
                pool = self._pool
                if pool is None:
                    raise AppError("the scoring pool is closed")
                try:
                    return await self._judge_once(pool, kind, text, gold)
                except BrokenProcessPool:
                    # A worker died without work in hand (the system ran out of memory, somebody killed it), upon which
                    # pebble gives up the whole pool. That says nothing about the text.
                    await self._replace(pool)
        raise AppError("the workers that score answers die as soon as they start; the reason is in the log above")

    async def _judge_once(self, pool: ProcessPool, kind: str, text: str, gold: Any) -> Verdict:
        from pebble import ProcessExpired

        try:
            task = pool.schedule(SCORERS[kind].judge, args=(text, gold), timeout=self._timeout_s)
        except RuntimeError as error:
            raise BrokenProcessPool(str(error)) from error
        future = asyncio.wrap_future(task)
        try:
            # The time limit of the task only runs once a worker has it.
            await asyncio.wait([future], timeout=START_LIMIT_S + self._timeout_s)
        finally:
            unfinished = future.cancel()  # pebble kills the worker of a cancelled task.
        if unfinished:
            raise AppError(f"no worker took an answer to score within {START_LIMIT_S} s; is the machine overloaded?")
        try:
            return future.result()
        except (TimeoutError, ProcessExpired):
            self.timed_out += 1
            return UNREAD

    def _start_workers(self) -> ProcessPool:
        from pebble import ProcessPool

        pool = ProcessPool(
            max_workers=self._workers,
            max_tasks=TASKS_PER_WORKER,
            initializer=_prepare_worker,
            initargs=(os.getpid(),),
            # Never fork: the driver has threads and an event loop.
            context=multiprocessing.get_context("spawn"),
        )
        # Workers, and the pool's thread that replaces them, inherit the signal mask. Ignoring Ctrl-C in the worker
        # itself would come too late: it takes a second until it runs its first line.
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            pool.schedule(os.getpid)  # The first task starts the workers; nobody waits for it.
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)
        return pool

    async def _replace(self, broken: ProcessPool) -> None:
        if self._pool is broken:
            self._pool = self._start_workers()
            await asyncio.to_thread(_stop_workers, broken)


def _stop_workers(pool: ProcessPool) -> None:
    pool.stop()  # type: ignore[no-untyped-call]
    pool.join()


def _prepare_worker(driver: int) -> None:
    """Runs in a new worker, before its first text.

    Args:
        driver: Process id of the driver.
    """
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # <linux/prctl.h>; see prctl(2)
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != driver:
        os._exit(1)  # It died before the line above took effect.
    # pebble stops a worker by SIGTERM and handles it in Python, which a worker that hangs in C never gets to; the pool
    # then stands still for the 3 s until it sends SIGKILL. There is nothing to clean up: die at once.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    # It warns that its own time limits are off; they are on purpose.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    math = SCORERS["math"]
    math.judge("\\boxed{\\frac{1}{2}}", math.gold("0.5"))  # Imports SymPy and fills the parser's tables.
