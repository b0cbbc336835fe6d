"""Look after a workload that doesn't get on: say what it waits for, and at the limit go on without it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from matrix.client.flights import Flight
from matrix.client.http import ModelClient
from matrix.spec.workload import WorkloadSpec

_LOG = logging.getLogger(__name__)

_LOOKS = 10
"""How often it looks, within the shorter one of its two times."""
_NAMED = 5
"""Requests that are named in the log, oldest first."""


@asynccontextmanager
async def watching(client: ModelClient, workload: WorkloadSpec) -> AsyncIterator[None]:
    """Watch a client's requests while the block runs.

    No row answered or failed for `stall_warn_s`, with some in flight: the log names the oldest ones, again after each
    further `stall_warn_s`. At `stall_limit_s` all that have been under way for so long become error rows (`stalled`).
    """
    task = asyncio.create_task(_watch(client, workload.stall_warn_s, workload.stall_limit_s))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _watch(client: ModelClient, warn_s: float, limit_s: float | None) -> None:
    look_s = min(warn_s, limit_s or warn_s, 60.0) / _LOOKS
    said = 0
    while True:
        await asyncio.sleep(look_s)
        flights, now = client.in_flight(), time.monotonic()
        if not flights:
            said = 0
            continue
        # What has only just begun hasn't been slow yet.
        quiet_s = now - max(client.landed_at, flights[0].started)
        if limit_s is not None and quiet_s >= limit_s:
            stalled = [flight for flight in flights if now - flight.started >= limit_s]
            _LOG.warning("No row finished for %.0f s: %d in flight become errors", quiet_s, len(stalled))
            for flight in stalled:
                why = f"{_name(flight, now)}; no row finished for {limit_s:g} s (workload.stall_limit_s)"
                client.give_up(flight, why)
        elif quiet_s >= warn_s * (said + 1):
            said = int(quiet_s / warn_s)
            oldest = "; ".join(_name(flight, now) for flight in flights[:_NAMED])
            _LOG.warning("No row finished for %.0f s, %d in flight. The oldest: %s", quiet_s, len(flights), oldest)
        elif quiet_s < warn_s:
            said = 0


def _name(flight: Flight, now: float) -> str:
    age_s = now - flight.started
    if flight.phase == "sent":
        return f"row {flight.label} for {age_s:.0f} s, with {flight.endpoint} for {now - flight.sent_at:.0f} s"
    last = f", last error: {flight.last}" if flight.last else ""
    return f"row {flight.label} for {age_s:.0f} s, waiting for its next try (tries so far: {flight.attempt}{last})"
