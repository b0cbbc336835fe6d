"""A run against a vendor's API, without a cluster: it starts the gateway, uses it and ends it."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.command import LOCAL, command, environment, rows, summary
from tests.integration.family import Family
from tests.serving.gateways.vendor import Reply, Vendor

KEY = "sk-ant-of-this-test"
ANSWER: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-x",
    "content": [{"type": "text", "text": "Paris"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 10, "output_tokens": 2},
}
BUSY = {"type": "error", "error": {"type": "rate_limit_error", "message": "too fast"}, "request_id": "req_1"}
ROWS = 12


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(f'{{"question": "row {n}", "answer": "Paris"}}\n' for n in range(ROWS)))
    return ["pipeline=sample_qa", "dataset=jsonl", f"dataset.path={data}", "run.dir=here", *LOCAL]


@pytest.fixture
async def vendor() -> AsyncIterator[Vendor]:
    async with Vendor(Reply(ANSWER)).listening() as listening:
        yield listening


def started(cwd: Path, url: str, *arguments: str, **env: str) -> subprocess.Popen[str]:
    engine = ["engine=anthropic", "model=api", "model.name=claude-x", f"engine.base_url={url}"]
    pipe = subprocess.PIPE
    env = environment(**env)
    return subprocess.Popen(command(*engine, *arguments), cwd=cwd, env=env, stdout=pipe, stderr=pipe, text=True)


async def ended(process: subprocess.Popen[str]) -> str:
    """What it said, once it has ended; the vendor goes on answering meanwhile."""
    return (await asyncio.to_thread(process.communicate))[1]


async def test_all_rows_are_answered_and_nothing_is_left(tmp_path: Path, arguments: list[str], vendor: Vendor) -> None:
    with Family() as family:
        process = started(tmp_path, vendor.url, *arguments, ANTHROPIC_API_KEY=KEY)
        said = await ended(process)
    assert process.returncode == 0, said
    assert "Starting the gateway to anthropic: done" in said
    assert "Ray" not in said
    lines = [line for _, line in family.seen()]
    assert any("matrix.serving" in line for line in lines)
    assert not any("ray::" in line or "gcs_server" in line or KEY in line for line in lines)
    assert family.exposed == set()
    assert family.left(within_s=0) == []

    assert {asked.headers["authorization"] for asked in vendor.asked} == {f"Bearer {KEY}"}
    assert {asked.path for asked in vendor.asked} == {"/v1/messages"}
    found = rows(tmp_path / "here")
    assert [(row["status"], row["response"]["text"]) for row in found] == [("ok", ["Paris"])] * ROWS
    assert found[0]["response"]["usage"]["completion_tokens"] == 2
    assert summary(tmp_path / "here")["scores"]["contains"]["accuracy"] == 1
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not any(KEY.encode() in file.read_bytes() for file in files)


async def test_who_is_asked_to_wait_waits(tmp_path: Path, arguments: list[str], vendor: Vendor) -> None:
    busy = Reply(BUSY, 429, {"Retry-After": "3"})
    began: list[float] = []
    vendor.replies, vendor.before = [busy, Reply(ANSWER)], lambda: began.append(time.monotonic())
    process = started(tmp_path, vendor.url, *arguments, "workload.concurrency=1", ANTHROPIC_API_KEY=KEY)
    said = await ended(process)
    assert process.returncode == 0, said
    assert time.monotonic() - began[0] > 3
    assert len(vendor.asked) == ROWS + 1
    assert {row["status"] for row in rows(tmp_path / "here")} == {"ok"}


async def test_ctrl_c_ends_the_gateway_too(tmp_path: Path, arguments: list[str], vendor: Vendor) -> None:
    vendor.replies = [Reply(ANSWER, hangs=True)]
    with Family() as family:
        process = started(tmp_path, vendor.url, *arguments, ANTHROPIC_API_KEY=KEY)
        while not vendor.asked:
            assert process.poll() is None, process.communicate()
            await asyncio.sleep(0.1)
        process.send_signal(signal.SIGINT)
        said = await ended(process)
    assert process.returncode == 130, said
    assert family.left(within_s=0) == []


async def test_kill_9_ends_the_gateway_too(tmp_path: Path, arguments: list[str], vendor: Vendor) -> None:
    vendor.replies = [Reply(ANSWER, hangs=True)]
    with Family() as family:
        process = started(tmp_path, vendor.url, *arguments, ANTHROPIC_API_KEY=KEY)
        while not vendor.asked:
            assert process.poll() is None, process.communicate()
            await asyncio.sleep(0.1)
        process.kill()
        await ended(process)
    assert family.left(within_s=5) == []


async def test_a_key_that_is_missing_or_wrong(tmp_path: Path, arguments: list[str], vendor: Vendor) -> None:
    process = started(tmp_path, vendor.url, *arguments, ANTHROPIC_API_KEY="")
    said = await ended(process)
    assert process.returncode == 2
    assert "engine.api_key_env=ANTHROPIC_API_KEY: this environment variable is not set" in said
    assert not (tmp_path / "here").exists()
    assert vendor.asked == []

    error = {"type": "authentication_error", "message": "invalid x-api-key"}
    vendor.replies = [Reply({"type": "error", "error": error, "request_id": "req_1"}, 401)]
    process = started(tmp_path, vendor.url, *arguments, ANTHROPIC_API_KEY=KEY)
    said = await ended(process)
    assert process.returncode == 1
    errors = [row["error"] for row in rows(tmp_path / "here")]
    assert {error["type"] for error in errors} == {"http_401"}
    assert "invalid x-api-key" in errors[0]["message"]
    assert KEY not in said + json.dumps(errors)
