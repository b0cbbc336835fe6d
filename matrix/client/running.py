"""Run a coroutine from code that isn't asynchronous, whether or not an event loop is running around it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, wait
from threading import Thread
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")

_LOOK_EVERY_S = 0.2


def run_to_end(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine on an event loop of its own, and wait for it.

    Where a loop is running (a notebook, a web server), the new one has a thread of its own; the running one stands
    still meanwhile, as it does while any blocking function runs.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(work())
    return _in_a_thread(work)


def _in_a_thread(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    outcome: Future[T] = Future()
    started: Future[Callable[[], object]] = Future()

    async def watched() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None  # noqa: S101 - a runner makes one
        started.set_result(lambda: loop.call_soon_threadsafe(task.cancel))
        return await work()

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                result = runner.run(watched())
            outcome.set_result(result)
        except BaseException as error:  # noqa: BLE001 - the thread that waits is told
            outcome.set_exception(error)

    thread = Thread(target=run, name="matrix-requests", daemon=True)
    thread.start()
    try:
        return _result(outcome)
    finally:
        # Ctrl-C, which only the thread that waits is told of: nothing may go on behind its back.
        if not outcome.done():
            started.result()()
        thread.join()


def _result(outcome: Future[T]) -> T:
    """Wait; `asyncio.run` answers Ctrl-C by cancelling the task that stands still here, which has to look itself."""
    task = asyncio.current_task()
    cancelled_before = task.cancelling() if task else 0
    while not outcome.done() and (task is None or task.cancelling() == cancelled_before):
        wait([outcome], _LOOK_EVERY_S)
    if not outcome.done():
        raise asyncio.CancelledError
    return outcome.result()
