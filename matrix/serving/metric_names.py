"""What engines call their metrics, and what we call them: one name for each quantity, whichever engine serves an app.

Pages are in Prometheus' text format, version 0.0.4 (prometheus.io/docs/instrumenting/exposition_formats).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

Kind = Literal["gauge", "counter", "histogram"]


class Sample(NamedTuple):
    """One line of a page. `labels` is what stands between the braces, as it stands there."""

    name: str
    labels: str
    value: str


@dataclass(frozen=True)
class Metric:
    """One quantity that every app has.

    Attributes:
        kind: Prometheus' type.
        help: What it is.
        sources: The engines' names for it; a server of ours uses our own. For a histogram, that of its family.
        most: The largest of an engine's series counts (data-parallel ranks), not their sum.
    """

    kind: Kind
    help: str
    sources: tuple[str, ...]
    most: bool = False


# vLLM: vllm/v1/metrics/loggers.py of 0.32. SGLang: srt/observability/metrics_collector.py of 0.5.
UNIFORM: Mapping[str, Metric] = {
    "matrix_requests_running": Metric(
        "gauge", "Requests that the replica works on.", ("vllm:num_requests_running", "sglang:num_running_reqs")
    ),
    "matrix_requests_waiting": Metric(
        "gauge", "Requests that the replica has queued.", ("vllm:num_requests_waiting", "sglang:num_queue_reqs")
    ),
    "matrix_kv_cache_usage": Metric(
        "gauge",
        "Share of the KV cache in use, 0 to 1.",
        ("vllm:kv_cache_usage_perc", "sglang:token_usage"),
        most=True,
    ),
    "matrix_prompt_tokens_total": Metric(
        "counter", "Tokens of prompts.", ("vllm:prompt_tokens_total", "sglang:prompt_tokens_total")
    ),
    "matrix_generation_tokens_total": Metric(
        "counter", "Tokens generated.", ("vllm:generation_tokens_total", "sglang:generation_tokens_total")
    ),
    "matrix_requests_total": Metric(
        "counter", "Requests that were answered.", ("vllm:request_success_total", "sglang:num_requests_total")
    ),
    "matrix_request_seconds": Metric(
        "histogram",
        "Seconds from a request to the end of its answer.",
        ("vllm:e2e_request_latency_seconds", "sglang:e2e_request_latency_seconds"),
    ),
    "matrix_time_to_first_token_seconds": Metric(
        "histogram",
        "Seconds from a request to its first token.",
        ("vllm:time_to_first_token_seconds", "sglang:time_to_first_token_seconds"),
    ),
    "matrix_inter_token_seconds": Metric(
        "histogram",
        "Seconds between two tokens.",
        ("vllm:inter_token_latency_seconds", "sglang:inter_token_latency_seconds"),
    ),
}

SUFFIXES = ("_bucket", "_sum", "_count")
"""Of the samples of a histogram or summary."""


def _sources() -> Iterator[tuple[str, str]]:
    for ours, metric in UNIFORM.items():
        for theirs in metric.sources:
            if metric.kind == "histogram":
                yield from ((theirs + suffix, ours + suffix) for suffix in SUFFIXES)
            else:
                yield theirs, ours


OURS: Mapping[str, str] = dict(_sources())
"""From an engine's name of a sample to ours, `_bucket`, `_sum` and `_count` of histograms included."""


class Load(NamedTuple):
    """What a replica is doing.

    Attributes:
        running: Requests that it works on.
        waiting: Requests that it has queued.
        tokens_total: Grows while tokens are read or made, as long as the process lives; nothing else is to be read off
            it. (SGLang counts the tokens of a request at its end, so what it counts meanwhile is added.)
    """

    running: float
    waiting: float
    tokens_total: float


_RUNNING = ("matrix_requests_running", *UNIFORM["matrix_requests_running"].sources)
_WAITING = ("matrix_requests_waiting", *UNIFORM["matrix_requests_waiting"].sources)
_TOKENS = (
    "matrix_prompt_tokens_total",
    "matrix_generation_tokens_total",
    *UNIFORM["matrix_prompt_tokens_total"].sources,
    *UNIFORM["matrix_generation_tokens_total"].sources,
    "sglang:realtime_tokens_total",
    "sglang:inter_token_latency_seconds_count",
)
_LOAD: Mapping[str, int] = {name: place for place, names in enumerate((_RUNNING, _WAITING, _TOKENS)) for name in names}

# A brace may stand in a label's value, so the last one ends the labels; a time stamp may follow the value.
_SAMPLE = re.compile(
    r"""([A-Za-z_:][\w:]*) [ \t]* (?:\{(.*)\})?
        [ \t]+ ([-+]?(?:(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?|inf|nan))
        (?:[ \t]+-?\d+)? \s*""",
    re.ASCII | re.IGNORECASE | re.VERBOSE,
)


def sample_of(line: str) -> Sample | None:
    """The sample on a line; None if it is a comment, empty or no sample at all."""
    found = _SAMPLE.fullmatch(line)
    return None if found is None else Sample(found[1], (found[2] or "").strip().rstrip(","), found[3])


def is_part(labels: str) -> bool:
    """Whether a series is a part of another one: SGLang gives the total, `priority=""`, and each priority's share."""
    return 'priority="' in labels and 'priority=""' not in labels


def load_of(page: str) -> Load:
    """What a replica's `/metrics` says about its load; what isn't on the page counts as 0."""
    sums = [0.0, 0.0, 0.0]
    for line in page.splitlines():
        place = _LOAD.get(line.partition("{")[0].partition(" ")[0])
        if place is None:
            continue
        sample = sample_of(line)
        if sample is not None and not is_part(sample.labels):
            sums[place] += float(sample.value)
    return Load(*sums)
