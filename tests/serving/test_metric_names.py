from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from matrix.serving.metric_names import OURS, UNIFORM, Load, Sample, load_of, sample_of

VLLM = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 2.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 7.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 7.0
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="m"} 1.5e+06
vllm:prompt_tokens_created{engine="0",model_name="m"} 1.7e+09
vllm:generation_tokens_total{engine="0",model_name="m"} 40.0
"""

SGLANG = """\
sglang:num_running_reqs{model_name="m",priority=""} 3
sglang:num_running_reqs{model_name="m",priority="1"} 3
sglang:num_queue_reqs{model_name="m"} 1
sglang:prompt_tokens_total{model_name="m"} 10
sglang:generation_tokens_total{model_name="m"} 20
sglang:realtime_tokens_total{model_name="m",mode="decode"} 5
sglang:inter_token_latency_seconds_count{model_name="m"} 4
"""


def test_load_of_vllm_sums_over_its_engines() -> None:
    assert load_of(VLLM) == Load(running=5, waiting=7, tokens_total=1_500_040)


def test_load_of_sglang_grows_within_a_request_and_counts_no_priority_twice() -> None:
    assert load_of(SGLANG) == Load(running=3, waiting=1, tokens_total=39)


def test_load_of_a_server_of_ours() -> None:
    page = "matrix_requests_running 2\nmatrix_requests_waiting 0\nmatrix_generation_tokens_total 9\n"
    assert load_of(page) == Load(2, 0, 9)


def test_load_of_a_page_without_any_of_it() -> None:
    assert load_of("# nothing\nprocess_open_fds 7\n\n") == Load(0, 0, 0)


@pytest.mark.parametrize(
    ("line", "sample"),
    [
        ("up 1", Sample("up", "", "1")),
        ('a:b{x="}",y="a b"} 1.5 1395066363000', Sample("a:b", 'x="}",y="a b"', "1.5")),
        ('a{x="1",} +Inf', Sample("a", 'x="1"', "+Inf")),
        ("a{} NaN", Sample("a", "", "NaN")),
        ("# TYPE a counter", None),
        ("", None),
        ("<html>", None),
    ],
)
def test_lines(line: str, sample: Sample | None) -> None:
    assert sample_of(line) == sample


def test_vllm_names_are_those_of_the_installed_vllm() -> None:
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vLLM isn't installed")
    source = (Path(spec.origin).parent / "v1" / "metrics" / "loggers.py").read_text()
    there = set(re.findall(r'name="(vllm:\w+)"', source))
    for metric in UNIFORM.values():
        # prometheus_client puts _total behind a counter's name.
        assert metric.sources[0].removesuffix("_total") in there


def test_each_name_has_one_meaning() -> None:
    assert OURS["vllm:e2e_request_latency_seconds_bucket"] == "matrix_request_seconds_bucket"
    sources = [name for metric in UNIFORM.values() for name in metric.sources]
    assert len(sources) == len(set(sources))
