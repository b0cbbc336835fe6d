"""An app with real vLLM: SmolLM2 on the CPU, deployed once for all tests here, by the commands of a user."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import APIStatusError, OpenAI

from matrix.client.query_llm import batch_requests
from tests.command import command, rows, summary
from tests.integration.family import Family
from tests.integration.kept import Cluster, engine_pids

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

APP = ["model=smollm2", "engine.grpc=true", "engine.drain_timeout_s=5", "engine.cpus=0.5"]
CAPITAL: dict[str, Any] = {
    "type": "object",
    "properties": {"country": {"type": "string", "maxLength": 12}, "capital": {"type": "string", "maxLength": 12}},
    "required": ["country", "capital"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Family() as family, Cluster.until_the_end(tmp_path_factory.mktemp("matrix")) as found:
        assert "added: smollm2" in found.deploy(*APP, timeout_s=400)
        yield found
    assert family.exposed == set()
    assert family.left(within_s=20) == []


def test_health_by_http_and_grpc(cluster: Cluster) -> None:
    for more, endpoints in (([], 2), (["use_chat=false"], 2), (["use_grpc=true"], 1)):
        said = cluster.command("check_health", "app=smollm2", *more).stdout
        assert said.count("ok  ") == endpoints
        assert "app smollm2 is healthy" in said


@pytest.mark.parametrize("grpc", ["false", "true"])
def test_a_tool_is_called(cluster: Cluster, grpc: str) -> None:
    said = cluster.command("check_health", "app=smollm2", "use_tools=true", f"use_grpc={grpc}").stdout
    assert "app smollm2 is healthy" in said
    # The schema of the tool is `strict`, so that it holds for so small a model, too.
    assert re.search(r"""'get_weather', 'arguments': '{"city": """, said)


FORMAT = {"type": "json_schema", "json_schema": {"name": "capital", "schema": CAPITAL}}


@pytest.mark.parametrize("how", [{"extra_body": {"response_format": FORMAT}}, {"guided_decoding": {"json": CAPITAL}}])
def test_an_answer_by_a_schema_over_grpc(cluster: Cluster, how: dict[str, Any]) -> None:
    (replica,) = cluster.app("smollm2")["replicas"]
    asked = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}
    options: dict[str, Any] = {"temperature": 0.0, "max_tokens": 80, "api_key": cluster.key}
    (row,) = batch_requests(replica["grpc_url"], "smollm2", [asked], **options, **how)
    said = json.loads(row["response"]["text"][0])
    assert set(said) == {"country", "capital"}


def test_what_the_model_cannot_is_refused(cluster: Cluster) -> None:
    client = OpenAI(base_url=cluster.door("smollm2"), api_key=cluster.key, max_retries=0, timeout=180)
    with pytest.raises(APIStatusError) as refused:
        client.embeddings.create(model="smollm2", input="hello")
    assert refused.value.status_code in {400, 404}
    messages: Any = [{"role": "user", "content": "word " * 3000}]
    with pytest.raises(APIStatusError) as refused:
        client.chat.completions.create(model="smollm2", messages=messages)
    assert refused.value.status_code == 400
    assert "2048" in refused.value.message


def test_arguments_that_vllm_has_not_are_refused(cluster: Cluster) -> None:
    before = cluster.urls("smollm2")
    said = cluster.deploy(*APP, "engine.args.max_num_seq=8", "--action", "replace", code=2)
    assert "engine.args.max_num_seq" in said
    assert "max_num_seqs" in said
    said = cluster.deploy(*APP, "engine.args.no_such=1", "--action", "replace", code=2)
    assert "engine.args.no_such" in said
    assert cluster.urls("smollm2") == before


def test_an_engine_that_is_killed_in_the_middle_of_a_run_costs_no_row(cluster: Cluster, tmp_path: Path) -> None:
    (before,) = cluster.urls("smollm2")
    arguments = [
        *APP,
        "cluster=attach",
        "tracker=none",
        "trials=2",
        "workload.concurrency=8",
        f"run.dir={tmp_path}/run",
    ]
    process = subprocess.Popen(
        command(*arguments), cwd=tmp_path, env=cluster.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    part = tmp_path / "run" / "rows" / "part-driver.jsonl"
    while not part.is_file() or part.read_bytes().count(b"\n") < 10:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    for pid in engine_pids(before):
        os.kill(pid, signal.SIGKILL)
    _, said = process.communicate(timeout=360)
    assert process.returncode == 0, said
    assert "App smollm2 is up" in said
    found = rows(tmp_path / "run")
    assert [(row["index"], row["trial"]) for row in found] == [(i, t) for i in range(48) for t in range(2)]
    assert {row["status"] for row in found} == {"ok"}
    assert summary(tmp_path / "run")["rows"]["error"] == 0
    endpoints = {row["response"]["endpoint"] for row in found}
    assert before in endpoints
    assert len(endpoints) > 1
    assert engine_pids(before) == []
    (after,) = cluster.urls("smollm2")
    assert after != before
