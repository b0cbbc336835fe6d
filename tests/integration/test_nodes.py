"""Replicas over two nodes: two raylets on this machine, at 127.0.0.1 and 127.0.0.2, under Ray's token."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from tests.command import ROOT
from tests.integration.another_node import HOST
from tests.integration.family import Family
from tests.integration.kept import Cluster, processes
from tests.integration.weights import make_weights

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

SERVER = "sglang.launch_server"
NODES = {"127.0.0.1", HOST}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One node with a GPU that isn't there; the other one comes and goes."""
    with Family() as family, Cluster.until_the_end(tmp_path_factory.mktemp("matrix")) as found:
        found.start(cpus=4, gpus_per_node=1)
        yield found
    assert family.left(within_s=20) == []


@contextmanager
def another_node(cluster: Cluster) -> Iterator[None]:
    """The second node while the block runs."""
    state = cluster.logs.parent
    address = json.loads((state / "cluster.json").read_text())["address"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.another_node", address, "4", "1"],
        env={**cluster.env, "RAY_AUTH_TOKEN_PATH": str(state / "token")},
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "joined\n"
        yield
    finally:
        process.communicate(timeout=360)


def ask(cluster: Cluster, app: str, question: str, **more: Any) -> str | None:
    client = OpenAI(base_url=cluster.urls(app)[0], api_key=cluster.key, timeout=360)
    messages: Any = [{"role": "user", "content": question}]
    said: str | None = client.chat.completions.create(model=app, messages=messages, **more).choices[0].message.content
    return said


def ray_node(pid: int) -> str:
    """The raylet under which a process runs: there is one on each node."""
    (found,) = re.findall(r"(?:^|\0)RAY_RAYLET_PID=(\w+)", Path(f"/proc/{pid}/environ").read_text())
    return str(found)


def nodes_of_sglang() -> dict[str, int]:
    """Process of the engine on each node, by the node's address; its rank is the place."""
    lines = {int(line[line.index("--node-rank") + 1]): (pid, line) for pid, line in processes(SERVER).items()}
    return {line[line.index("--host") + 1]: pid for _, (pid, line) in sorted(lines.items())}


def secret_files() -> set[Path]:
    """The files that the engine's processes read their key from."""
    return {Path(line[line.index("--config") + 1]) for line in processes(SERVER).values()}


def test_sglang_over_two_nodes(cluster: Cluster, tmp_path: Path) -> None:
    weights = make_weights(tmp_path / "weights")
    model = ["model=api", "model.name=wide", f"model.source={weights}", "model.context_length=512"]
    engine = ["engine=sglang", f"engine.python={sys.executable}", "engine.cpus=0.5", "engine.drain_timeout_s=5"]
    stand_in = f"engine.env.PYTHONPATH='{ROOT}/tests/stand_ins:{ROOT}'"
    where = ["cluster=attach", "cluster.nodes=2", "cluster.gpus_per_node=1"]
    wide = [*engine, stand_in, *model, *where, "model.parameters_b=0.1", "model.pipeline_parallel=2"]

    # Nodes may come: it isn't refused, but says what it waits for.
    said = cluster.deploy(*wide, "wait=false")
    assert "wide has to wait: needs 2 nodes with 1 GPU" in said
    with another_node(cluster):
        cluster.until(lambda: len(cluster.urls("wide")) == 1)
        assert set(nodes_of_sglang()) == NODES
        assert ask(cluster, "wide", "hello") == "hello"
        secrets = secret_files()

        # Both ends of a pipeline go together, whichever died.
        before = nodes_of_sglang()
        os.kill(list(before.values())[1], signal.SIGKILL)
        cluster.until(lambda: set(nodes_of_sglang()) == NODES and not set(before.values()) & set(processes(SERVER)))
        cluster.until(lambda: len(cluster.urls("wide")) == 1)
        assert ask(cluster, "wide", "again") == "again"
        secrets |= secret_files()

    # The machine is gone: so is the replica, until there is another one.
    cluster.until(lambda: cluster.urls("wide") == [] and processes(SERVER) == {})
    with another_node(cluster):
        cluster.until(lambda: len(cluster.urls("wide")) == 1)
        assert set(nodes_of_sglang()) == NODES
        assert ask(cluster, "wide", "once more") == "once more"
        secrets |= secret_files()
        cluster.deploy("--action", "remove", "app=wide")
        assert processes(SERVER) == {}
    assert len(secrets) == 6
    assert not any(file.exists() for file in secrets)


DEPLOY = """
import sys
from pathlib import Path
from matrix.apps.deploy import App, deploy, start_serve, wait_until_healthy
from matrix.cluster.kept import find_kept
from matrix.cluster.ray import connect
from matrix.compose import compose_spec
from matrix.models.source import resolve

spec = compose_spec(sys.argv[1:])
cluster = connect(find_kept().attach())
start_serve()
source = resolve(spec.model.source, print)
app = App("smollm2", spec.engine, spec.model, source, cpu=True, bundles=[{"CPU": 1.0}, {"CPU": 1.0}])
deploy(app, find_kept().log_dir, kept=True)
wait_until_healthy([app], lambda _: None, lambda _: None)
cluster.stop()
"""


def test_vllm_over_two_nodes_without_gpus(cluster: Cluster) -> None:
    """The real one. A config puts pipeline stages on GPUs only, so the app is made by hand."""
    overrides = ["model=smollm2", "model.context_length=512", "model.pipeline_parallel=2", "tracker=none"]
    engine = ["engine.device=cuda", "cluster=attach", "cluster.nodes=2", "cluster.gpus_per_node=1"]
    settings = ["engine.env.VLLM_CPU_OMP_THREADS_BIND=nobind", "engine.start_timeout_s=300", "engine.drain_timeout_s=5"]
    with another_node(cluster):
        command = [sys.executable, "-c", DEPLOY, *overrides, *engine, *settings]
        subprocess.run(command, env=cluster.env, cwd=ROOT, check=True, timeout=360)
        (head,), (other,) = processes("--node-rank", "0", "--nnodes"), processes("--node-rank", "1", "--headless")
        assert ray_node(head) != ray_node(other)
        said = ask(cluster, "smollm2", "What is the capital of France?", temperature=0, max_tokens=12)
        assert said == "The capital of France is Paris."
        cluster.deploy("--action", "remove", "app=smollm2")
        assert processes("--nnodes") == {}
