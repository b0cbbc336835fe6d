from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from matrix.serving.door.figures import Figures
from matrix.serving.door.page import Page
from tests.serving.test_metric_names import SGLANG, VLLM

HISTOGRAM = """\
# HELP vllm:e2e_request_latency_seconds Histogram of e2e request latency in seconds.
# TYPE vllm:e2e_request_latency_seconds histogram
vllm:e2e_request_latency_seconds_bucket{engine="0",le="0.3"} 1.0
vllm:e2e_request_latency_seconds_bucket{engine="0",le="+Inf"} 2.0
vllm:e2e_request_latency_seconds_count{engine="0"} 2.0
vllm:e2e_request_latency_seconds_sum{engine="0"} 1.5
vllm:e2e_request_latency_seconds_bucket{engine="1",le="0.3"} 1.0
vllm:e2e_request_latency_seconds_bucket{engine="1",le="+Inf"} 1.0
vllm:e2e_request_latency_seconds_count{engine="1"} 1.0
vllm:e2e_request_latency_seconds_sum{engine="1"} 0.25
# TYPE vllm:e2e_request_latency_seconds_created gauge
vllm:e2e_request_latency_seconds_created{engine="0"} 1.7e+09
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:kv_cache_usage_perc{engine="1"} 0.75
"""


def samples(page: Page) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """What Prometheus' own parser reads, each metric once."""
    families = list(text_string_to_metric_families(page.text()))
    assert len({family.name for family in families}) == len(families)
    found = [(sample.name, frozenset(sample.labels.items()), sample.value) for f in families for sample in f.samples]
    assert len(found) == len({(name, labels) for name, labels, _ in found})
    return {(name, labels): value for name, labels, value in found}


def of(found: dict[tuple[str, frozenset[tuple[str, str]]], float], name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def test_each_metric_stands_there_once_with_all_its_samples() -> None:
    page = Page()
    for replica in ("h:1", "h:2"):
        page.add(VLLM, {"app": "a", "replica": replica})
    text = page.text()
    assert text.count("# TYPE vllm:num_requests_running gauge") == 1
    assert text.count("# HELP vllm:num_requests_running Number of requests in model execution batches.") == 1
    found = samples(page)
    for replica in ("h:1", "h:2"):
        assert of(found, "vllm:num_requests_running", app="a", replica=replica, engine="1", model_name="m") == 2


def test_one_name_whichever_engine() -> None:
    page = Page()
    page.add(VLLM + HISTOGRAM, {"app": "v", "replica": "r"}, uniform=True)
    page.add(SGLANG, {"app": "s", "replica": "r"}, uniform=True)
    page.add(
        "# TYPE matrix_requests_running gauge\nmatrix_requests_running 4\n", {"app": "o", "replica": "r"}, uniform=True
    )
    found = samples(page)
    running = {app: of(found, "matrix_requests_running", app=app, replica="r") for app in "vso"}
    assert running == {"v": 5, "s": 3, "o": 4}
    assert of(found, "matrix_prompt_tokens_total", app="v", replica="r") == 1_500_000
    assert of(found, "matrix_kv_cache_usage", app="v", replica="r") == 0.75
    assert of(found, "matrix_request_seconds_bucket", app="v", replica="r", le="0.3") == 2
    assert of(found, "matrix_request_seconds_bucket", app="v", replica="r", le="+Inf") == 3
    assert of(found, "matrix_request_seconds_sum", app="v", replica="r") == 1.75
    # What the engine itself says is there as well.
    assert of(found, "vllm:e2e_request_latency_seconds_count", app="v", replica="r", engine="1") == 1
    kinds = {family.name: family.type for family in text_string_to_metric_families(page.text())}
    assert kinds["matrix_request_seconds"] == "histogram"
    assert kinds["matrix_prompt_tokens"] == "counter"


def test_labels_that_are_in_the_way_are_kept_under_another_name() -> None:
    page = Page()
    page.add('serve{application="x",replica="r#1",my_node="m",text="a,node=b"} 1\n', {"node": "n", "replica": "h:1"})
    labels = {"node": "n", "replica": "h:1", "application": "x", "exported_replica": "r#1", "my_node": "m"}
    assert of(samples(page), "serve", **labels, text="a,node=b") == 1


def test_what_is_no_metric_is_left_out() -> None:
    page = Page()
    page.add("<html>\n{}\nup yes\n# HELP\n# TYPE\n# HELP a\n# TYPE a gauge\na 1\n", {"node": 'a"\\\nb'})
    assert of(samples(page), "a", node='a"\\\nb') == 1
    assert len(samples(page)) == 1


def test_figures_of_the_door() -> None:
    figures = Figures()
    figures.count("a", "200", 0.05)
    figures.count("a", "200", 3600)
    figures.count("a", "503", 1)
    page = Page()
    page.add(figures.page(), {})
    found = samples(page)
    assert of(found, "matrix_door_requests_total", app="a", status="200") == 2
    assert of(found, "matrix_door_request_seconds_bucket", app="a", le="0.025") == 0
    assert of(found, "matrix_door_request_seconds_bucket", app="a", le="0.05") == 1
    assert of(found, "matrix_door_request_seconds_bucket", app="a", le="1800.0") == 2
    assert of(found, "matrix_door_request_seconds_count", app="a") == 3
    assert of(found, "matrix_door_request_seconds_sum", app="a") == 3601.05
