"""What a server counts: a backend around another one that HTTP and gRPC go through; in Prometheus' text format."""

from __future__ import annotations

import re
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from functools import partial
from itertools import accumulate
from types import TracebackType
from typing import Any, Self, cast

from matrix.serving.backend import ApiError, Backend, Json, Route

CLIENT_GONE = 499
"""Status of a request whose client went away before the answer; nginx' number for it."""

# Seconds; those of vLLM's histograms, with its two for whole requests and first tokens as one.
_BOUNDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640)
_WAITING = re.compile(r"^matrix_requests_waiting (\d+)", re.MULTILINE)
_RUNNING_TEXT = "Requests that are being worked on."
_RUNNING = re.compile(r"^matrix_requests_running ", re.MULTILINE)


class Histogram:
    """Observed seconds, in a form that is cheap to add to.

    Args:
        name: Of the metric.
        text: What it measures.
    """

    def __init__(self, name: str, text: str) -> None:
        self.name, self.text = name, text
        self.sum = 0.0
        self._counts = [0] * (len(_BOUNDS) + 1)

    def observe(self, seconds: float) -> None:
        """Add a value."""
        self._counts[bisect_left(_BOUNDS, seconds)] += 1
        self.sum += seconds

    def render(self) -> str:
        """All buckets, sum and count."""
        counts = list(accumulate(self._counts))
        bounds = [*map(str, _BOUNDS), "+Inf"]
        lines = [f'{self.name}_bucket{{le="{bound}"}} {count}\n' for bound, count in zip(bounds, counts, strict=True)]
        lines += [f"{self.name}_sum {self.sum}\n", f"{self.name}_count {counts[-1]}\n"]
        return _head(self.name, "histogram", self.text) + "".join(lines)


class Meter(Backend):
    """A backend that counts what another one does.

    Tokens are those of the `usage` of answers. Streams are always asked for theirs; a client that didn't ask for it
    doesn't see it.

    Args:
        backend: The one that answers.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._statuses: Counter[int] = Counter()
        self._in_flight = 0
        self._prompt_tokens = self._generation_tokens = 0
        self._seconds = Histogram("matrix_request_seconds", "Seconds from a request to its whole answer.")
        self._first_token = Histogram(
            "matrix_time_to_first_token_seconds", "Seconds from a request to its first chunk; streams only."
        )

    def refused(self, status: int) -> None:
        """Count a request that never reached the backend."""
        self._statuses[status] += 1

    async def start(self) -> None:
        """Start the backend."""
        await self._backend.start()

    async def close(self) -> None:
        """Close the backend."""
        await self._backend.close()

    def models(self) -> list[str]:
        """Those of the backend."""
        return self._backend.models()

    def problem(self) -> str | None:
        """That of the backend."""
        return self._backend.problem()

    def metrics(self) -> str:
        """All figures, those of the backend included.

        One that queues gives `matrix_requests_waiting` itself; those aren't running.
        """
        own = self._backend.metrics()
        found = _WAITING.search(own)
        waiting = int(found[1]) if found else 0
        statuses = "".join(
            f'matrix_requests_total{{status="{status}"}} {count}\n' for status, count in sorted(self._statuses.items())
        )
        return "".join([
            _head("matrix_requests_total", "counter", f"Finished requests; {CLIENT_GONE}: their clients went away."),
            statuses,
            "" if _RUNNING.search(own) else gauge("matrix_requests_running", _RUNNING_TEXT, self._in_flight - waiting),
            "" if found else gauge("matrix_requests_waiting", "Requests in a queue.", 0),
            _counter("matrix_prompt_tokens_total", "Tokens of prompts that were answered.", self._prompt_tokens),
            _counter("matrix_generation_tokens_total", "Tokens of answers.", self._generation_tokens),
            self._seconds.render(),
            self._first_token.render(),
            own,
        ])  # fmt: skip

    def routes(self) -> Mapping[str, Route]:
        """Those of the backend, counted."""
        return {
            path: Route(partial(self._whole, whole), None if chunks is None else partial(self._chunks, chunks))
            for path, (whole, chunks) in self._backend.routes().items()
        }

    async def _whole(self, ask: Callable[[Json], Awaitable[Json]], body: Json) -> Json:
        with _Watch(self):
            answer = await ask(body)
            self._count_tokens(answer.get("usage"))
            return answer

    async def _chunks(self, ask: Callable[[Json], AsyncIterator[Json]], body: Json) -> AsyncIterator[Json]:
        options = body.get("stream_options") or {}
        is_asked = bool(options.get("include_usage"))
        if not is_asked:
            body = {**body, "stream_options": {**options, "include_usage": True}}
        usage = None
        with _Watch(self) as watch:
            async with aclosing(cast("Any", ask(body))) as chunks:
                first = await anext(chunks)
                self._first_token.observe(time.perf_counter() - watch.began)
                yield first
                async for chunk in chunks:
                    usage = chunk.get("usage") or usage
                    if is_asked or chunk.get("choices"):
                        yield chunk
            self._count_tokens(usage)

    def _count_tokens(self, usage: Json | None) -> None:
        if usage:
            self._prompt_tokens += usage.get("prompt_tokens") or 0
            self._generation_tokens += usage.get("completion_tokens") or 0

    def _began(self) -> None:
        self._in_flight += 1

    def _ended(self, status: int, seconds: float) -> None:
        self._in_flight -= 1
        self._statuses[status] += 1
        if status == 200:
            self._seconds.observe(seconds)


class _Watch:
    """One request, from its begin to its end."""

    __slots__ = ("_meter", "began")

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def __enter__(self) -> Self:
        self._meter._began()  # noqa: SLF001
        self.began = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            status = 200
        elif isinstance(error, ApiError):
            status = error.status
        else:
            # Cancelled, or a stream that nobody wants to read to its end.
            status = 500 if isinstance(error, Exception) else CLIENT_GONE
        self._meter._ended(status, time.perf_counter() - self.began)  # noqa: SLF001


def gauge(name: str, text: str, value: float) -> str:
    """A metric without labels whose value goes up and down, in Prometheus' text format."""
    return _head(name, "gauge", text) + f"{name} {value}\n"


def _counter(name: str, text: str, value: float) -> str:
    return _head(name, "counter", text) + f"{name} {value}\n"


def _head(name: str, kind: str, text: str) -> str:
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n"
