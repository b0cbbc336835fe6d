"""Requests from Python, with the arguments and the rows of fair-matrix's `query_llm`: docs/python.md."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matrix.client.batches import EndpointCache, KnowsApps, Row, all_of, client_for, servers_of
from matrix.client.query_rows import answer_row, error_row, request_body, stamped, text_of
from matrix.client.servers import Url
from matrix.errors import RequestError


async def make_request(
    url: Url | None,
    model: str,
    data: Mapping[str, Any],
    seed: int | None = None,
    app_name: str = "",  # noqa: ARG001 - fair-matrix needs it for gRPC, where all apps share a port
    temperature: float | None = 0.7,
    max_tokens: int | None = 1024,
    top_p: float | None = 0.9,
    n: int = 1,
    logprobs: bool = False,
    top_logprobs: int | None = None,
    max_retries: int = 3,
    initial_delay: float = 1,
    backoff_factor: float = 2,
    multiplexed_model_id: str = "",
    timeout_secs: float = 600,
    tools: Iterable[Any] | None = None,
    tool_choice: Any = None,
    prompt_logprobs: int | None = None,
    endpoint_cache: EndpointCache | None = None,
    top_k: int = -1,
    guided_decoding: Mapping[str, Any] | None = None,
    extra_body: Mapping[str, Any] | None = None,
    *,
    api_key: str | None = None,
) -> Row:
    """Send one request, again where that may help, and wait for the answer.

    All requests of an event loop share their connections, which are closed with the loop. They also share what is known
    of a server: the next request goes to the replica with the fewest outstanding, and not to one that fails.

    Args:
        url: Base URL up to and including `/v1`, several of them (the replicas of a model), or a function that returns
            either, asynchronous or not: it is asked for each request, and again after a failure. `grpc://HOST:PORT`, or
            `HOST:PORT` alone, is asked by gRPC.
        model: What the server calls the model.
        data: `messages` for a chat, or `prompt` for a completion. What else it holds is only handed back in the row.
        seed: None: not sent, as with the other sampling fields.
        app_name: Not needed.
        temperature: As the server has it, like `max_tokens` and `top_p`.
        max_tokens: Tokens of an answer at most.
        top_p: Share of probability to sample from.
        n: Answers.
        logprobs: Give the log probability of each token.
        top_logprobs: The same, and that of so many alternatives.
        max_retries: Tries, the first one included. A server that turns the request away (429) or can't be reached is
            asked more often, for 10 seconds per try after the first.
        initial_delay: Seconds before the second try.
        backoff_factor: By how much the wait grows.
        multiplexed_model_id: Requests with the same one go to the same replica as long as that isn't overloaded.
        timeout_secs: Limit of one try.
        tools: Tools of a chat, as OpenAI has them.
        tool_choice: Which of them to call.
        prompt_logprobs: Of vLLM: log probabilities of the prompt's tokens.
        endpoint_cache: Gives the URLs if `url` is empty: `endpoints["updater"]` of an app's metadata. Called with
            whether it has to look anew.
        top_k: Of vLLM: how many tokens to sample from; -1: all.
        guided_decoding: Of vLLM: `{"json": SCHEMA}`, `{"regex": ...}`, `{"choice": [...]}` or `{"grammar": ...}`.
        extra_body: More fields of the body (`response_format`, `stop`, ...), which win over all others.
        api_key: Sent as bearer token; None: no such header.

    Returns:
        `{"request": ..., "response": ...}`. A request that failed is such a row, too: its response has an `error`.

    Raises:
        ConfigError: An argument can't be right for any request: a URL that is neither HTTP nor gRPC, an unknown
            constraint.
    """
    fields = {
        "model": model,
        "temperature": temperature,
        "max_tokens": max_tokens,
        "top_p": top_p,
        "seed": seed,
        "n": n,
        "top_k": None if top_k == -1 else top_k,
        "prompt_logprobs": prompt_logprobs,
    }
    request: Any = data
    try:
        request = stamped(data)
        body = request_body(
            data,
            fields,
            logprobs=logprobs,
            top_logprobs=top_logprobs,
            tools=tools,
            tool_choice=tool_choice,
            guided_decoding=guided_decoding,
            extra_body=extra_body,
        )
        client = await client_for(
            url,
            endpoint_cache,
            api_key=api_key,
            timeout_secs=timeout_secs,
            max_retries=max_retries,
            initial_delay=initial_delay,
            backoff_factor=backoff_factor,
            # What Ray Serve's own proxies route by, if there is one.
            headers={"serve_multiplexed_model_id": multiplexed_model_id} if multiplexed_model_id else None,
        )
        async with client:
            ask = client.chat if "messages" in data else client.complete
            response = await ask(body, affinity=multiplexed_model_id or None)
    except RequestError as error:
        return error_row(request, error)
    return answer_row(
        request,
        response,
        logprobs=logprobs or top_logprobs is not None,
        prompt_logprobs=prompt_logprobs is not None,
    )


def batch_requests(
    url: Url | None,
    model: str,
    requests: Sequence[Mapping[str, Any]],
    batch_size: int | None = None,
    text_response_only: bool = False,
    verbose: bool = False,
    **kwargs: Any,
) -> list[Any]:
    """Send many requests and wait for all answers; also where an event loop is running, which waits meanwhile.

    Args:
        url: As for `make_request`.
        model: As above.
        requests: What `make_request` calls `data`.
        batch_size: Requests at a time; None: all, up to 1,024.
        text_response_only: Return the first answer of each as text; "" where there is none.
        verbose: Show progress.
        kwargs: More arguments of `make_request`.

    Returns:
        What `make_request` returns, or texts, in the order of the requests.

    Raises:
        ConfigError: As above.
        TypeError: `make_request` has no such argument.
    """
    inspect.signature(make_request).bind(url, model, {}, **kwargs)
    rows = all_of(lambda data: make_request(url, model, data, **kwargs), requests, batch_size, verbose=verbose)
    return [text_of(row) for row in rows] if text_response_only else rows


def generate(
    cli: KnowsApps,
    app_name: str,
    prompts: Sequence[Mapping[str, Any]],
    sampling_params: Mapping[str, Any] | None = None,
    *,
    use_tqdm: bool = False,
    batch_size: int = 128,
    max_retries: int = 3,
    text_response_only: bool = True,
    use_grpc: bool = False,
) -> list[Any]:
    """`batch_requests` with the model of a deployed app.

    Args:
        cli: A `matrix.Cli`.
        app_name: Name of the app.
        prompts: The requests.
        sampling_params: More arguments of `make_request` (`temperature`, `max_tokens`, ...).
        use_tqdm: Show progress.
        batch_size: Requests at a time.
        max_retries: As for `make_request`.
        text_response_only: As for `batch_requests`.
        use_grpc: By gRPC instead of HTTP (`endpoints["grpc"]` of the app's metadata: URLs, or a function for them).

    Raises:
        AppError: There is no such app, or it has no gRPC.
    """
    metadata, servers = servers_of(cli, app_name, use_grpc=use_grpc)
    return batch_requests(
        servers.pop("url"),
        metadata["model_name"],
        prompts,
        batch_size,
        text_response_only,
        use_tqdm,
        **{"max_retries": max_retries, **servers, **(sampling_params or {})},
    )
