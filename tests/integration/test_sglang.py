"""Apps with engine=sglang: real Ray and Serve with two GPUs that aren't there, SGLang played by tests/stand_ins/sglang."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import AuthenticationError, OpenAI

from tests.command import ROOT
from tests.integration.kept import Cluster, engine_pids, processes
from tests.integration.weights import make_weights

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

# As from another Python environment: that one's `sglang` is the stand-in.
STAND_IN = [f"engine.python={sys.executable}", f"engine.env.PYTHONPATH='{ROOT}/tests/stand_ins:{ROOT}'"]
SERVER = "sglang.launch_server"


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for an app `played`."""
    weights = make_weights(tmp_path_factory.mktemp("models") / "played")
    model = ["model=api", "model.name=played", f"model.source={weights}", "model.context_length=4096"]
    engine = ["engine=sglang", *STAND_IN, "engine.cpus=0.1", "engine.drain_timeout_s=10", "cluster.gpus_per_node=2"]
    return [*engine, *model, "model.parameters_b=0.1"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, played: list[str]) -> Iterator[Cluster]:
    """With the app on two replicas, a GPU each."""
    with Cluster.until_the_end(tmp_path_factory.mktemp("matrix")) as found:
        parsers = ["model.tool_parser=qwen25", "model.reasoning_parser=deepseek-r1"]
        more = ["engine.replicas=2", "engine.grpc=true", "engine.args.mem_fraction_static=0.8"]
        assert "added: played" in found.deploy(*played, *parsers, *more)
        yield found
    assert processes(SERVER) == {}


def server_info(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url.replace("/v1", "/get_server_info"), timeout=60) as answer:
        return dict(json.loads(answer.read()))


def test_health_by_http_and_grpc(cluster: Cluster) -> None:
    said = cluster.command("check_health", "app=played", "prompt=Hello there").stdout
    assert len(re.findall(r"^ok  http://127\.0\.0\.1:\d+/\S+  [\d.]+ s  Hello there$", said, re.MULTILINE)) == 3
    said = cluster.command("check_health", "app=played", "prompt=Hello there", "use_grpc=true").stdout
    assert len(re.findall(r"^ok  grpc://127\.0\.0\.1:\d+  [\d.]+ s  Hello there$", said, re.MULTILINE)) == 2


def test_the_front_door_spreads_requests_over_the_replicas(cluster: Cluster) -> None:
    client = OpenAI(base_url=cluster.door("played"), api_key=cluster.key)
    served = [url.replace("/v1", "/metrics") for url in cluster.urls("played")]
    before = [answered(url) for url in served]
    for number in range(20):
        messages: Any = [{"role": "user", "content": f"row {number}"}]
        answer = client.chat.completions.create(model="played", messages=messages)
        assert answer.choices[0].message.content == f"row {number}"
    news = [answered(url) - old for url, old in zip(served, before, strict=True)]
    assert sum(news) == 20
    assert min(news) >= 5


def answered(url: str) -> float:
    with urllib.request.urlopen(url, timeout=60) as page:
        (total,) = re.findall(r"sglang:generation_tokens_total\S* (\d+)", page.read().decode())
    return float(total)


def test_the_key_is_asked_for_and_stands_on_no_command_line(cluster: Cluster) -> None:
    key = cluster.key
    for url in cluster.urls("played"):
        with pytest.raises(AuthenticationError):
            OpenAI(base_url=url, api_key="a guess", max_retries=0).chat.completions.create(model="played", messages=[])
    lines = [line for entry in Path("/proc").glob("[0-9]*/cmdline") if (line := read(entry))]
    assert any(SERVER in line for line in lines)
    assert not any(key in line for line in lines)
    for file in secret_files():
        assert file.stat().st_mode & 0o777 == 0o600


def read(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


def secret_files() -> list[Path]:
    """The files that engines of the app read their key from."""
    return [Path(line[line.index("--config") + 1]) for line in processes(SERVER).values()]


def test_parsers_and_arguments_reach_the_engine(cluster: Cluster) -> None:
    info = server_info(cluster.urls("played")[0])
    assert (info["tool_call_parser"], info["reasoning_parser"]) == ("qwen25", "deepseek-r1")
    assert (info["served_model_name"], info["context_length"], info["mem_fraction_static"]) == ("played", 4096, 0.8)
    assert (info["tp_size"], info["pp_size"], info["nnodes"], info["enable_metrics"]) == (1, 1, 1, True)


@pytest.mark.parametrize("victim", ["the engine", "the replica"])
def test_who_is_killed_is_replaced(cluster: Cluster, victim: str) -> None:
    """Clients are sent to those that are left, and the file with the key goes, too."""
    before, files = cluster.urls("played"), secret_files()
    assert len(before) == len(files) == 2
    (pid,) = engine_pids(before[0])
    (secret,) = (Path(line[line.index("--config") + 1]) for line in processes(SERVER, port(before[0])).values())
    os.kill(pid if victim == "the engine" else replica_of(pid), signal.SIGKILL)
    cluster.until(lambda: before[0] not in cluster.urls("played") and len(cluster.urls("played")) == 2)
    assert before[1] in cluster.urls("played")
    assert engine_pids(before[0]) == []
    assert not secret.exists()
    assert "app played is healthy" in cluster.command("check_health", "app=played").stdout


def port(url: str) -> str:
    return url.split(":")[2].removesuffix("/v1")


def replica_of(pid: int) -> int:
    """Between it and its engine are the two processes of the guard."""
    for _ in range(3):
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pid


def test_an_app_that_is_removed_leaves_nothing(cluster: Cluster) -> None:
    files = secret_files()
    said = cluster.deploy("--action", "remove", "app=played")
    assert "removed: played" in said
    assert "INFO" not in said, "somebody else's log lines are on the terminal"
    assert processes(SERVER) == processes("matrix.serving.grpc_sidecar") == {}
    assert not any(file.exists() for file in files)


def test_an_engine_that_cannot_start_says_its_own_last_lines(cluster: Cluster, played: list[str]) -> None:
    said = cluster.deploy(*played, "engine.args.model_path=broken", code=1)
    assert "app played failed: SGLang ended with exit code 1; its last lines" in said
    assert "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static." in said
    assert cluster.app("played")["phase"] == "failed"
    # Nobody waits for it.
    said = cluster.command("check_health", "app=played", "timeout_s=600", code=1).stderr
    assert re.search(
        r"played has no replica that is ready; SGLang ended .*RuntimeError: Not enough memory", said, re.DOTALL
    )
    assert processes(SERVER) == {}
    cluster.deploy("--action", "remove", "app=played")


def test_more_gpus_than_there_are_are_refused(cluster: Cluster, played: list[str]) -> None:
    said = cluster.deploy(*played, "model.tensor_parallel=4", code=2)
    assert "model.tensor_parallel=4: a tensor parallel group stays inside a node, and a node has 2 GPUs" in said
    said = cluster.deploy(*played, "engine.replicas=3", code=2)
    assert "engine.replicas=3: no room for replica 3 of 3: needs 1 GPU" in said
