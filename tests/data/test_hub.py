"""`datasets` and `huggingface_hub` as they are, against a hub on loopback that holds one data set of two rows.

They read the hub's address and the place of the cache when they are imported: each case is a process of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web

pytest.importorskip("datasets")

SHA = "a" * 40
FILE = b'{"question": "1 + 1?"}\n{"question": "2 + 2?"}\n'
LOAD = """
import json, sys
from matrix.data.readers import load
from matrix.errors import DataError
from matrix.spec.workload import DatasetSpec
for spec in sys.argv[1:]:
    try:
        dataset = load(DatasetSpec(name="x", **json.loads(spec)))
        print(json.dumps([dataset.total, dataset.fingerprint, [example.columns for example in dataset.examples]]))
    except DataError as error:
        print(error)
"""


async def _answer(request: web.Request) -> web.Response:
    """What the hub's API says about `org/toy`, as far as loading it asks."""
    path = request.path
    file = {"type": "file", "path": "test.jsonl", "size": len(FILE), "oid": "b" * 40}
    if path == "/api/datasets/org/toy" or path.startswith(f"/api/datasets/org/toy/revision/{SHA}"):
        return web.json_response({"id": "org/toy", "sha": SHA, "siblings": [{"rfilename": "test.jsonl"}], "tags": []})
    if path == f"/api/datasets/org/toy/tree/{SHA}":
        return web.json_response([file])
    if path == f"/datasets/org/toy/resolve/{SHA}/test.jsonl":
        headers = {"ETag": f'"{file["oid"]}"', "X-Repo-Commit": SHA, "Content-Length": str(len(FILE))}
        return web.Response(body=FILE if request.method == "GET" else None, headers=headers)
    missing = "EntryNotFound" if "/resolve/" in path or "/tree/" in path else "RevisionNotFound"
    return web.Response(status=404, headers={"X-Error-Code": missing}, text='{"error": "none such"}')


class Hub:
    """The hub, in a thread; `close` makes it unreachable."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", _answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.01)
        self._run(self._runner.setup())
        self._run(web.TCPSite(self._runner, "127.0.0.1", 0).start())
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    def _run(self, task: object) -> None:
        asyncio.run_coroutine_threadsafe(task, self._loop).result(10)  # type: ignore[arg-type]

    def close(self) -> None:
        self._run(self._runner.cleanup())


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    yield hub
    hub.close()


def load_in_a_process(hub: Hub, cache: Path, *specs: dict[str, object]) -> list[str]:
    """What loading each of the data sets prints: its rows or its error."""
    env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(cache), "PYTHONPATH": os.pathsep.join(sys.path)}
    env |= {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
    env.pop("HF_HUB_OFFLINE", None)
    specs = tuple({"hub": "org/toy", "split": "test"} | spec for spec in specs)
    command = [sys.executable, "-c", LOAD, *map(json.dumps, specs)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.splitlines()


def test_rows_come_from_the_hub_and_later_from_the_cache(hub: Hub, tmp_path: Path) -> None:
    rows = [{"question": "1 + 1?"}, {"question": "2 + 2?"}]
    unknown = ({"revision": "nope"}, {"hub": "org/other"}, {"hub": "not an id"}, {"split": "nope"}, {"subset": "nope"})
    whole, one, *errors = load_in_a_process(hub, tmp_path, {}, {"limit": 1}, *unknown)
    assert json.loads(whole) == [2, f"org/toy@{SHA}", rows]
    assert json.loads(one) == [1, f"org/toy@{SHA}", rows[:1]]
    for spec, error in zip(unknown, errors, strict=True):
        assert error.startswith(f"dataset.hub={spec.get('hub', 'org/toy')}: ")
        assert "dataset.path=FILE" in error
    assert "Unknown split" in errors[3]
    hub.close()
    cached, other = load_in_a_process(hub, tmp_path, {}, {"revision": "b" * 40})
    assert json.loads(cached) == [2, f"org/toy@{SHA}", rows]
    assert f"the cache has revision {SHA}, not {'b' * 40}" in other
    assert "dataset.path=FILE" in other


def test_rows_stream_from_the_hub_and_nothing_is_kept(hub: Hub, tmp_path: Path) -> None:
    rows = [{"question": "1 + 1?"}, {"question": "2 + 2?"}]
    stream: dict[str, object] = {"streaming": True}
    whole, one, unknown = load_in_a_process(hub, tmp_path, stream, stream | {"limit": 1}, stream | {"split": "nope"})
    assert json.loads(whole) == [None, f"org/toy@{SHA}", rows]
    assert json.loads(one) == [None, f"org/toy@{SHA}", rows[:1]]
    assert unknown.startswith("dataset.hub=org/toy: ")
    hub.close()
    [message] = load_in_a_process(hub, tmp_path, stream)
    assert "could not be reached" in message
    assert "dataset.streaming needs it" in message


def test_an_unreachable_hub_is_said_in_seconds(hub: Hub, tmp_path: Path) -> None:
    hub.close()
    started = time.monotonic()
    [message] = load_in_a_process(hub, tmp_path, {})
    assert f"the hub at {hub.url} could not be reached (ConnectError" in message
    assert message.endswith("give a local file: dataset.path=FILE")
    # Most of it is the import of `datasets`; its own retries would take 23 s more.
    assert time.monotonic() - started < 15
