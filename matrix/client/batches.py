"""What the functions for programs have in common: a client for one request, and many requests at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

from matrix.client.http import ModelClient
from matrix.client.running import run_to_end
from matrix.client.servers import Url, find_servers
from matrix.client.sessions import shared
from matrix.errors import AppError, ConfigError, Problem

Row = dict[str, Any]
EndpointCache = Callable[[bool], Awaitable[Sequence[str]]]

MOST_IN_FLIGHT = 1024
"""Requests of a batch at a time unless `batch_size` says otherwise: more connections gain nothing."""

_PATIENCE_S = 10.0
"""Seconds for which servers may turn a request away or not be there, for each try after the first."""


class KnowsApps(Protocol):
    """What is needed of `matrix.Cli`."""

    def get_app_metadata(self, app_name: str) -> dict[str, Any]:
        """Where an app is, and what it serves."""


async def client_for(
    url: Url | None,
    endpoint_cache: EndpointCache | None,
    *,
    api_key: str | None,
    timeout_secs: float,
    max_retries: int,
    initial_delay: float,
    backoff_factor: float,
    headers: Mapping[str, str] | None = None,
) -> ModelClient:
    """A client for one request, with the event loop's connections; `make_request` describes the arguments.

    Raises:
        ConfigError: A URL is neither HTTP nor gRPC, or there is none.
        RequestError: The function for URLs fails, or has none to give.
    """
    tries = max(1, max_retries)
    delays_s = sum(initial_delay * backoff_factor ** min(number, 20) for number in range(tries - 1))
    common = await shared()
    patience_s = _PATIENCE_S * (tries - 1)
    return ModelClient(
        await find_servers(common, url, endpoint_cache, patience_s),
        api_key=api_key,
        timeout_s=timeout_secs * tries + delays_s,
        max_attempts=tries,
        try_timeout_s=timeout_secs,
        backoff_s=initial_delay,
        backoff_factor=backoff_factor,
        patience_s=patience_s,
        headers=headers,
        shared=common,
    )


def all_of(
    ask: Callable[[Any], Awaitable[Row]], requests: Sequence[Any], batch_size: int | None, *, verbose: bool
) -> list[Row]:
    """The rows of many requests, in their order; also where an event loop is running, which waits meanwhile.

    Args:
        ask: From a request to its row.
        requests: The requests.
        batch_size: Requests at a time; None: all, up to 1,024.
        verbose: Show progress.

    Raises:
        ConfigError: As `ask` raises it, or for the size.
    """
    if batch_size is not None and batch_size < 0:
        problem = Problem("batch_size", batch_size, "should be a number of requests", "or None")
        raise ConfigError([problem], "No request was sent.")
    rows: list[Row] = [{}] * len(requests)

    async def send_all() -> None:
        todo = iter(enumerate(requests))

        async def worker() -> None:
            for number, data in todo:
                rows[number] = await ask(data)
                advance()

        async with asyncio.TaskGroup() as group:
            for _ in range(min(batch_size or MOST_IN_FLIGHT, len(requests))):
                group.create_task(worker())

    with _progress(len(requests)) if verbose else nullcontext(lambda: None) as advance:
        try:
            run_to_end(send_all)
        except ExceptionGroup as several:
            raise several.exceptions[0] from None
    return rows


def servers_of(cli: KnowsApps, app_name: str, *, use_grpc: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """The metadata of an app, and the arguments that say where it is and which key it wants.

    Raises:
        AppError: There is no such app, or it has no gRPC.
    """
    metadata = cli.get_app_metadata(app_name)
    by_grpc = metadata["endpoints"].get("grpc") if use_grpc else None
    if use_grpc and not by_grpc:
        raise AppError(f"app {app_name} takes no gRPC: deploy it with engine.grpc=true")
    return metadata, {
        "url": by_grpc,
        "endpoint_cache": metadata["endpoints"]["updater"],
        "api_key": metadata.get("api_key"),
    }


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("Requests", total=total)
        yield lambda: bar.advance(task)
