"""Programs from Python, run by an app with `engine=sandbox`: docs/python.md."""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping, Sequence
from typing import Any

from matrix.client.batches import EndpointCache, KnowsApps, Row, all_of, client_for, servers_of
from matrix.client.query_rows import error_row, stamped
from matrix.client.servers import Url
from matrix.errors import RequestError


async def make_execution(
    url: Url | None,
    data: Mapping[str, Any] | str,
    *,
    model: str | None = None,
    timeout_secs: float = 600,
    max_retries: int = 3,
    initial_delay: float = 1,
    backoff_factor: float = 2,
    endpoint_cache: EndpointCache | None = None,
    api_key: str | None = None,
) -> Row:
    """Have a program run, and wait for what comes of it.

    Args:
        url: As for `matrix.client.query_llm.make_request`, like all that isn't described here.
        data: The program, or it with what it gets: fields of `matrix.sandbox.execution.Execution`. `metadata` is only
            handed back in the row.
        model: What the app calls itself, where the front door's `/v1` has to tell it from others.
        timeout_secs: Limit of one try, waiting for a worker included; `timeout` in `data` is the program's own.
        max_retries: As above.
        initial_delay: As above.
        backoff_factor: As above.
        endpoint_cache: As above.
        api_key: As above.

    Returns:
        `{"request": ..., "response": ...}`. The response has the fields of `matrix.sandbox.execution.Executed`, and
        `success`: its status is `ok`. A request that failed has an `error` instead, and no success either.

    Raises:
        ConfigError: A URL is neither HTTP nor gRPC, or there is none.
    """
    request: Any = data
    try:
        request = stamped({"code": data} if isinstance(data, str) else data)
        body = {name: value for name, value in request.items() if name != "metadata"}
        client = await client_for(
            url,
            endpoint_cache,
            api_key=api_key,
            timeout_secs=timeout_secs,
            max_retries=max_retries,
            initial_delay=initial_delay,
            backoff_factor=backoff_factor,
        )
        async with client:
            response = await client.execute(body if model is None else {"model": model, **body})
    except RequestError as error:
        row = error_row(request, error)
        row["response"]["success"] = False
        return row
    executed = response.executed or {}
    found = {**executed, "success": executed.get("status") == "ok", "response_timestamp": time.time()}
    return {"request": request, "response": found}


def batch_executions(
    url: Url | None,
    programs: Sequence[Mapping[str, Any] | str],
    batch_size: int | None = None,
    verbose: bool = False,
    **kwargs: Any,
) -> list[Row]:
    """Have many programs run, and wait for all; also where an event loop is running, which waits meanwhile.

    Args:
        url: As for `make_execution`.
        programs: What it calls `data`.
        batch_size: Programs at a time; None: all, up to 1,024.
        verbose: Show progress.
        kwargs: More arguments of `make_execution`.

    Returns:
        What `make_execution` returns, in the order of the programs.

    Raises:
        ConfigError: As above.
        TypeError: `make_execution` has no such argument.
    """
    inspect.signature(make_execution).bind(url, {}, **kwargs)
    return all_of(lambda data: make_execution(url, data, **kwargs), programs, batch_size, verbose=verbose)


def execute_code(
    cli: KnowsApps,
    app_name: str,
    programs: Sequence[Mapping[str, Any] | str],
    *,
    batch_size: int | None = None,
    verbose: bool = False,
    use_grpc: bool = False,
    **kwargs: Any,
) -> list[Row]:
    """`batch_executions` with a deployed app.

    Args:
        cli: A `matrix.Cli`.
        app_name: Name of the app.
        programs: As for `batch_executions`.
        batch_size: As above.
        verbose: As above.
        use_grpc: By gRPC instead of HTTP.
        kwargs: As above.

    Raises:
        AppError: There is no such app, or it has no gRPC.
    """
    _, servers = servers_of(cli, app_name, use_grpc=use_grpc)
    return batch_executions(programs=programs, batch_size=batch_size, verbose=verbose, **{**servers, **kwargs})
