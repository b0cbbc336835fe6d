"""The dashboards' queries, asked of a real Prometheus that reads a real cluster with an app, a front door and a run."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from matrix.cluster.grafana import dashboards
from matrix.cluster.monitoring import Monitoring
from matrix.cluster.reaper import of_cluster
from matrix.cluster.states import Node
from tests.command import LOCAL, ROOT, command
from tests.integration.kept import Cluster

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="there is no prometheus here"),
]

PRETEND = ["engine=simulated", "engine.cpus=0.1", "model=api", "model.name=pretend"]
# A machine without GPUs has no figures of them: a page with what Ray tells of two.
GPU_PAGE = """\
ray_node_gpus_utilization{GpuIndex="0"} 90
ray_node_gpus_utilization{GpuIndex="1"} 70
ray_node_gram_used{GpuIndex="0"} 60000
ray_node_gram_used{GpuIndex="1"} 60000
ray_node_gram_available{GpuIndex="0"} 20000
ray_node_gram_available{GpuIndex="1"} 20000
"""
TEAM = """\
from matrix.agents import State, Tools


async def writer(state: State, tools: Tools) -> str:
    response = await tools.llm([{"role": "user", "content": state.task["question"]}])
    return response.text[0]


async def reader(state: State, tools: Tools) -> str:
    return f"{len(state.last.text)} characters"
"""
SETTLED_S = 90


class Prometheus:
    """Its HTTP API."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1/query?"

    def values(self, expression: str) -> list[float]:
        """What an expression gives now."""
        expression = expression.replace("$__rate_interval", "10s")
        for variable in ("$node", "$app", "$run", "$role"):
            expression = expression.replace(variable, ".*")
        with urllib.request.urlopen(self._url + urllib.parse.urlencode({"query": expression}), timeout=60) as answer:
            found = json.load(answer)["data"]["result"]
        return [float(series["value"][1]) for series in found]

    def until(self, expression: str, wanted: list[float]) -> None:
        deadline = time.monotonic() + SETTLED_S
        while (found := self.values(expression)) != wanted:
            assert time.monotonic() < deadline, (expression, found)
            time.sleep(0.5)


class GpuPage(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(GPU_PAGE.encode())

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def gpu_node() -> Iterator[Node]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), GpuPage)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield node("with-gpus", f"127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()


def node(host: str, metrics: str) -> Node:
    return Node("1", host, "127.0.0.1", 1, "up", metrics=metrics, heartbeat=4e9)


def ray_nodes(cluster: Cluster) -> list[Node]:
    """Those of the cluster, with their pages."""
    script = """
import json
from matrix.cluster.ray import connect
from matrix.spec import AttachCluster
connect(AttachCluster(kind="attach", address="auto"))
import ray
print(json.dumps([[n["NodeManagerHostname"], f"{n['NodeManagerAddress']}:{n['MetricsExportPort']}"] for n in ray.nodes()]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env=cluster.env, capture_output=True, text=True, check=True, timeout=60
    )
    return [node(*one) for one in json.loads(done.stdout)]


@contextmanager
def a_run(cluster: Cluster, cwd: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A team's run, with the cluster's app, that takes longer than the test."""
    (cwd / "team.py").write_text(TEAM)
    team = ["agents=custom", "agents.file=team.py", "agents.order=[writer,reader]", "agents.repeat=false"]
    long = [*team, "trials=200", "workload.concurrency=8", "model.price.output_per_million=1000000"]
    with (cwd / "run.log").open("wb") as output:
        run = subprocess.Popen(
            command("cluster=attach", "cluster.address=auto", *PRETEND, *LOCAL, *long),
            env=cluster.env, cwd=cwd, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        yield run
    finally:
        run.send_signal(signal.SIGINT)
        run.wait(timeout=360)


def ask_a_stream(client: OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "hello"}]
    list(client.chat.completions.create(model="pretend", messages=messages, max_tokens=5, stream=True))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster.until_the_end(tmp_path_factory.mktemp("matrix")) as found:
        # 10 s otherwise; Ray forgets a figure that isn't told again within twice that.
        found.env["RAY_metrics_report_interval_ms"] = "3000"
        # Ray has as many GPUs to give as it is told, also where there are none.
        found.start(gpus_per_node=2)
        found.deploy(*PRETEND)
        yield found


def test_each_panel_has_data_while_a_run_goes_and_nodes_come_and_go(cluster: Cluster, tmp_path: Path) -> None:
    said: list[str] = []
    temp_dir = tmp_path / "tmp"
    monitoring = Monitoring(tmp_path, temp_dir, lambda: cluster.key, said.append, scrape_s=1)
    door = cluster.status()["front_door"]
    client = OpenAI(base_url=f"{door}/v1", api_key=cluster.key)
    nodes = ray_nodes(cluster)
    ports = monitoring.start()
    try:
        prometheus = Prometheus(ports["prometheus"])
        with gpu_node() as another, a_run(cluster, tmp_path) as run:
            monitoring.update([*nodes, another], door)
            missing = {
                (name, panel["title"], target["expr"])
                for name, text in dashboards().items()
                for panel in json.loads(text)["panels"]
                for target in panel["targets"]
            }
            deadline = time.monotonic() + SETTLED_S
            while missing:
                assert run.poll() is None, (tmp_path / "run.log").read_text()
                assert time.monotonic() < deadline, "\n".join(map(str, sorted(missing)))
                ask_a_stream(client)
                missing = {one for one in missing if not any(map(math.isfinite, values(prometheus, one[2])))}
            # Each node once, whoever else tells of it.
            prometheus.until("count(ray_node_cpu_count)", [1])
            prometheus.until("count(ray_matrix_run_rows_done)", [1])
            prometheus.until("count(ray_matrix_role_turns)", [2])
            prometheus.until('sum(up{job="nodes"})', [2])
            monitoring.update(nodes, door)
            prometheus.until('count(up{job="nodes"})', [1])
            monitoring.update(nodes, None)
            prometheus.until("count(matrix_replicas) or vector(0)", [0])
        # A run that has ended is forgotten.
        prometheus.until("count(ray_matrix_run_rows_done) or vector(0)", [0])
        prometheus.until("count(ray_matrix_role_turns) or vector(0)", [0])
    finally:
        monitoring.end()
    assert of_cluster(monitoring._mark, str(temp_dir)) == []
    assert list(temp_dir.iterdir()) == []
    assert [text for text in said if "no grafana-server" not in text] == []


def values(prometheus: Prometheus, expression: str) -> list[float]:
    try:
        return prometheus.values(expression)
    except urllib.error.URLError:
        # It isn't up yet.
        return []


def test_ray_tells_of_gpus_what_the_stand_in_tells() -> None:
    script = "from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES as m; print(*m)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    names = {line.partition("{")[0].removeprefix("ray_") for line in GPU_PAGE.splitlines()}
    assert names <= set(done.stdout.split())
