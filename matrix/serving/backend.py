"""What stands behind a server of ours: a backend answers requests, given and answered as plain JSON objects."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, NamedTuple, Protocol

Json = dict[str, Any]

CHAT, COMPLETIONS, EMBEDDINGS, EXECUTE = "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/execute"
"""Paths that are also methods of gRPC."""


class Route(NamedTuple):
    """What answers the requests to one path.

    Attributes:
        whole: Gives a whole answer.
        chunks: Gives it in chunks, for requests with `stream`; None: such requests get a whole answer, too.
    """

    whole: Callable[[Json], Awaitable[Json]]
    chunks: Callable[[Json], AsyncIterator[Json]] | None = None


class ApiError(Exception):
    """A request that is refused or failed, as its client gets to see it.

    Attributes:
        status: HTTP status: 400 the request's own fault, 401 and 403 credentials, 404, 408 and 504 too late, 429 too
            many requests, 500 and 502 the backend's fault, 503 not now.
        message: What went wrong, for people.
        retry_after_s: What to wait before another try (429 and 503); None: it isn't known.
        kind: OpenAI's `error.type`.
    """

    def __init__(self, status: int, message: str, *, retry_after_s: float | None = None, kind: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after_s = retry_after_s
        self.kind = kind or ("invalid_request_error" if status < 500 else "server_error")

    def body(self) -> Json:
        """The error object, in OpenAI's shape."""
        return {"error": {"message": self.message, "type": self.kind, "param": None, "code": self.status}}


class Backend(Protocol):
    """Answers requests. All methods run on one event loop, and its routes raise `ApiError` for what they refuse."""

    def reached_at(self, address: str, api_key: str | None) -> None:  # noqa: ARG002 - most need not know
        """Be told where the server is (`HOST:PORT`) and what it asks for, before `start`."""
        return

    async def start(self) -> None:
        """Get ready; called once, before the first request."""

    async def close(self) -> None:
        """Give everything back; requests under way have ended."""

    def routes(self) -> Mapping[str, Route]:
        """What answers at which path; stays as it is."""

    def models(self) -> list[str]:
        """Names that requests may ask for."""

    def problem(self) -> str | None:
        """Why it can't answer at all, for `/health`; None if it can."""

    def metrics(self) -> str:
        """What it counts beside the server's own figures, in Prometheus' text format; may be empty.

        One that queues gives `matrix_requests_waiting`: the server takes these off `matrix_requests_running`. One whose
        work isn't its requests gives both.
        """


class ModelBackend(Backend, Protocol):
    """Answers OpenAI's requests to a model.

    `chat`, `complete` and `embed` give a whole answer (`chat.completion`, `text_completion`, a list of embeddings);
    `stream_chat` and `stream_complete` give its chunks (`chat.completion.chunk`, ...), `usage` in a last one where
    `stream_options.include_usage` asks for it. An error before the first chunk is raised from the first `anext`.
    """

    def routes(self) -> Mapping[str, Route]:
        """OpenAI's paths."""
        return {
            CHAT: Route(self.chat, self.stream_chat),
            COMPLETIONS: Route(self.complete, self.stream_complete),
            EMBEDDINGS: Route(self.embed),
        }

    async def chat(self, body: Json) -> Json:
        """Answer a chat completion request."""

    def stream_chat(self, body: Json) -> AsyncIterator[Json]:
        """The same in chunks."""

    async def complete(self, body: Json) -> Json:
        """Answer a text completion request."""

    def stream_complete(self, body: Json) -> AsyncIterator[Json]:
        """The same in chunks."""

    async def embed(self, body: Json) -> Json:
        """Answer a request for embeddings."""
