"""An app that a run deployed, found and used by another process: real Ray and Serve, an engine that is played."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import pytest

from tests.command import ROOT, environment

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

LOOK = """
import asyncio, json, sys
from matrix import Cli
from matrix.client.query_llm import batch_requests, generate
from matrix.errors import AppError

address, token_path = sys.argv[1:]
hello = {"messages": [{"role": "user", "content": "hello"}]}
with Cli(address, token_path) as cli:
    metadata = cli.get_app_metadata("played-1")
    by_model = cli.get_app_metadata("played", head_only=True)
    renamed = cli.get_app_metadata("nobody", model_name="played")
    updater = metadata["endpoints"].pop("updater")
    by_model["updated"] = asyncio.run(by_model["endpoints"].pop("updater")(True))
    try:
        cli.get_app_metadata("playd-1")
    except AppError as error:
        unknown = str(error)
    said = {
        "metadata": metadata,
        "by_model": by_model,
        "renamed": renamed["name"],
        "unknown": unknown,
        "updated": asyncio.run(updater(True)),
        "generated": generate(cli, "played-1", [hello] * 20, {"max_tokens": 3}),
        "asked": batch_requests(metadata["endpoints"]["workers"], "played", [hello], api_key=metadata["api_key"]),
        "locked": batch_requests(metadata["endpoints"]["head"], "played", [hello])[0]["response"]["error"],
    }
print(json.dumps(said))
"""


class Cluster(NamedTuple):
    """What who wants to join has to know, and the process behind it."""

    address: str
    token_path: Path
    process: subprocess.Popen[str]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("serving")
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.serving", str(folder)],
        cwd=ROOT, env=environment(MATRIX_API_KEY="key-of-played"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        out = pipe(process.stdout)
        address, token = (out.readline().strip() for _ in range(2))
        (folder / "token").write_text(token)
        yield Cluster(address, folder / "token", process)
    finally:
        process.communicate(timeout=360)
    assert process.returncode == 0


def pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def look(cluster: Cluster) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LOOK, cluster.address, str(cluster.token_path)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=360, check=False)


def test_another_process_finds_the_app_and_uses_it(cluster: Cluster) -> None:
    done = look(cluster)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    metadata = said["metadata"]
    workers = metadata["endpoints"]["workers"]
    assert len(set(workers)) == 2
    assert said["updated"] == workers
    port = int(workers[0].split(":")[2].removesuffix("/v1"))
    args = metadata.pop("args")
    assert metadata == {
        "name": "played-1",
        "http_port": port,
        "grpc_port": None,
        "route_prefix": "",
        "model_name": "played",
        "deployment_name": "engine",
        "use_grpc": False,
        "endpoint_template": f"http://{{host}}:{port}/v1",
        "app_type": "llm",
        "api_key": "key-of-played",
        "endpoints": {"head": workers[0], "workers": workers, "grpc": []},
    }
    assert metadata["endpoint_template"].format(host="127.0.0.1") == workers[0]
    limits = args["replicas"]
    assert (args["served_model_name"], limits["min"], limits["max"]) == ("played", 2, 2)
    assert said["by_model"]["endpoints"] == {"head": workers[0], "workers": [], "grpc": []}
    assert said["by_model"]["updated"] == workers[:1]
    assert said["renamed"] == "played-1"
    assert "playd-1: no such app" in said["unknown"]
    assert "did you mean played-1" in said["unknown"]
    assert said["generated"] == ["hello"] * 20
    assert said["asked"][0]["response"]["text"] == ["hello"]
    assert "401" in said["locked"]


def test_who_has_not_the_token_gets_nothing(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_text("0" * 64)
    done = look(cluster._replace(token_path=tmp_path / "wrong"))
    assert done.returncode != 0
    assert "ClusterError" in done.stderr
    assert "key-of-played" not in done.stdout + done.stderr
    missing = look(cluster._replace(token_path=tmp_path / "nowhere"))
    assert "no such file" in missing.stderr


def test_batch_inference_against_an_app(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": str(i)}) + "\n" for i in range(50)))
    arguments = ["input=in.jsonl", "output=out.jsonl", f"cluster.address={cluster.address}"]
    command = [sys.executable, "-c", "from matrix.cli import main; main()", "inference", "app=played", *arguments]
    token = f"cluster.token_path={cluster.token_path}"
    done = subprocess.run(
        [*command, token], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=360, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["response"]["text"] for row in rows] == [[str(i)] for i in range(50)]
    assert {row["request"]["model"] for row in rows} == {"played"}
    assert len({row["response"]["endpoint"] for row in rows}) == 2
    assert not any(b"key-of-" in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


def test_nothing_is_found_once_the_app_is_gone(cluster: Cluster) -> None:
    print(file=pipe(cluster.process.stdin), flush=True)
    assert pipe(cluster.process.stdout).readline() == "removed\n"
    done = look(cluster)
    assert "AppError: app played-1: no app is running on this cluster" in done.stderr
