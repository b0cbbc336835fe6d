"""The SDKs of OpenAI, Anthropic and Meta come from one generator (Stainless), so one module knows their errors."""

from __future__ import annotations

from importlib import import_module
from json import JSONDecodeError
from types import ModuleType
from typing import Any

from matrix.client.tries import seconds
from matrix.serving.backend import ApiError, Json

_CONNECT_S = 10.0

_STATUS = {408: 504, 503: 503, 504: 504, 529: 503}
"""What isn't passed on as it is; 529 is Anthropic's "overloaded". Other 5xx are 502."""


def client_options(sdk: ModuleType) -> Json:
    """Arguments of a client's class: no retries, time-outs and limits of the SDK's own, since the gateway has them.

    Args:
        sdk: `openai`, `anthropic` or `llama_api_client`.
    """
    http = _http(sdk)
    return {
        "max_retries": 0,
        "timeout": sdk.Timeout(None, connect=_CONNECT_S),
        "http_client": sdk.DefaultAsyncHttpxClient(limits=http.Limits(max_keepalive_connections=100)),
    }


def refusal(sdk: ModuleType, vendor: str, error: Exception) -> ApiError | None:
    """What an error of an SDK means; None: it isn't one of the SDK.

    Args:
        sdk: The SDK.
        vendor: For messages.
        error: The error.
    """
    if isinstance(error, sdk.APIStatusError):
        return of_status(vendor, error)
    if isinstance(error, sdk.APIConnectionError):
        return ApiError(502, f"{vendor} can't be reached: {error.__cause__ or error}")
    # What is sent in the middle of a stream.
    if isinstance(error, sdk.APIError):
        return ApiError(502, f"{vendor}: {_told(error).get('message') or error}")
    if isinstance(error, JSONDecodeError):
        return ApiError(502, f"{vendor} answered with something else than JSON.")
    if isinstance(error, _http(sdk).HTTPError):
        return ApiError(502, f"The connection to {vendor} broke: {type(error).__name__} {error}".rstrip())
    return None


def of_status(vendor: str, error: Any, status: int | None = None) -> ApiError:
    """What an answer with an error status means.

    Args:
        vendor: For messages.
        error: An APIStatusError.
        status: Instead of the answer's own.
    """
    status = status or int(error.status_code)
    told = _told(error)
    message = told.get("message") or told.get("detail") or told.get("title") or str(error)
    headers = error.response.headers
    # Milliseconds: what OpenAI and Azure send beside the standard header.
    wait_s = seconds(headers.get("retry-after")) or seconds(headers.get("retry-after-ms")) / 1000
    code = told.get("code")
    return ApiError(
        status if status < 500 and status not in _STATUS else _STATUS.get(status, 502),
        f"{vendor}: {message}",
        retry_after_s=wait_s or None,
        # The one code that decides whether another call may help.
        kind=str(code if code == "insufficient_quota" else told.get("type") or ""),
    )


def answer_of(vendor: str, answer: object) -> Json:
    """An answer that the SDK wasn't asked to parse.

    Raises:
        ApiError: 502, it is no JSON object.
    """
    if not isinstance(answer, dict):
        raise ApiError(502, f"{vendor} answered with something else than a JSON object.")
    return answer


def _told(error: Any) -> Json:
    """The error object in the answer's body."""
    body = error.body
    inner = body.get("error", body) if isinstance(body, dict) else None
    return inner if isinstance(inner, dict) else {}


def _http(sdk: ModuleType) -> Any:
    """The HTTP library below: httpx, or httpx2 in newer SDKs; known by what the SDK's HTTP client derives from."""
    base = sdk.DefaultAsyncHttpxClient.__mro__[1]
    return import_module(base.__module__.partition(".")[0])
