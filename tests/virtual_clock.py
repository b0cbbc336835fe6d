"""An event loop whose clock goes on only while there is nothing to do: waits cost no time and end to the microsecond.

For what waits by the loop's own clock (`asyncio.sleep`, `call_later`, `asyncio.timeout`) and for nothing else: sockets,
threads and subprocesses need real time. A folder of tests gets it by the hook `pytest_asyncio_loop_factories`.
"""

from __future__ import annotations

import asyncio


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """The loop; it starts at 0."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0

    def time(self) -> float:
        """Seconds that have passed in it."""
        return self._now

    def _run_once(self) -> None:
        # The loop's own turn (asyncio/base_events.py): what is ready runs, else it would wait for the first timer.
        if not self._ready and self._scheduled:
            self._now = max(self._now, self._scheduled[0].when())
        super()._run_once()
