from __future__ import annotations

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from matrix.errors import AppError
from matrix.models import hub
from matrix.models.source import check_source, resolve

constants = pytest.importorskip("huggingface_hub.constants")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(BaseHTTPRequestHandler):
    """The one request of the hub's API that is made, as the hub answers it."""

    def do_GET(self):
        known = {
            "/api/models/org/name": COMMIT,
            "/api/models/org/name/revision/v1": COMMIT[::-1],
        }
        commit = known.get(self.path)
        self.send_response(200 if commit else 404)
        if not commit:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if commit:
            self.wfile.write(json.dumps({"id": "org/name", "sha": commit}).encode())

    def log_message(self, *args):
        pass


@pytest.fixture
def fake_hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield
    server.shutdown()


@pytest.fixture
def no_hub(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture(autouse=True)
def hub_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def snapshot(hub_cache) -> Path:
    """What a download of the main branch leaves in the hub's cache."""
    entry = hub_cache / "models--org--name"
    folder = entry / "snapshots" / COMMIT
    for path in (entry / "refs", entry / "blobs", folder):
        path.mkdir(parents=True)
    (entry / "refs" / "main").write_text(COMMIT)
    for name in ("config.json", "model.safetensors"):
        (entry / "blobs" / name).write_text(name)
        (folder / name).symlink_to(f"../../blobs/{name}")
    return folder


def test_the_hub_names_the_commit(fake_hub):
    model = resolve("org/name", print)
    assert (model.path, model.revision, model.checksum) == ("org/name", COMMIT, None)

    model = resolve("org/name@v1", print)
    assert (model.path, model.revision, model.origin) == ("org/name", COMMIT[::-1], "org/name@v1")


def test_what_the_hub_doesnt_know_is_an_error_that_says_so(fake_hub):
    with pytest.raises(AppError, match="RepositoryNotFoundError: 404"):
        resolve("org/typo", print)


@pytest.mark.parametrize("source", ["org/name", "org/name@main", f"org/name@{COMMIT}"])
def test_without_the_hub_its_cache_does(no_hub, snapshot, source):
    said: list[str] = []

    model = resolve(source, said.append)

    assert (model.path, model.revision, model.origin) == (str(snapshot), COMMIT, source)
    assert "the hub named no commit (ConnectError" in said[0]


def test_an_incomplete_snapshot_is_no_model(no_hub, snapshot, hub_cache):
    (hub_cache / "models--org--name" / "blobs" / "model.safetensors").unlink()
    index = {"weight_map": {"x": "model.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))

    with pytest.raises(AppError, match="lacks 1 of its weight files"):
        resolve("org/name", print)


def test_with_neither_the_error_names_what_was_tried_and_the_ways_out(no_hub, hub_cache):
    with pytest.raises(AppError) as raised:
        resolve("org/name", print)

    message = str(raised.value)
    assert message.startswith("model.source=org/name: neither the hub nor its cache has it")
    assert f"{constants.ENDPOINT}: ConnectError" in message
    assert str(hub_cache / "models--org--name") in message
    for way_out in ("model.source=FOLDER", "HF_ENDPOINT", "HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE=1"):
        assert way_out in message


def test_a_hub_that_is_silent_costs_seconds(monkeypatch):
    monkeypatch.setattr(hub, "REQUEST_LIMIT_S", 0.3)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(AppError, match="ReadTimeout"):
            resolve("org/name", print)
    assert time.monotonic() - started < 3


def test_all_of_it_has_a_limit():
    with pytest.raises(TimeoutError, match="no answer within 0 s"):
        hub._within(0.05, lambda: time.sleep(5))


def test_offline_by_wish_is_checked_before_the_run(monkeypatch, snapshot):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    assert check_source("org/name") is None
    assert "HF_HUB_OFFLINE is set" in (check_source("org/other") or "")


def test_offline_by_wish_takes_the_cache_without_asking(monkeypatch, snapshot):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    assert resolve("org/name", print).path == str(snapshot)


def test_the_place_of_the_cache_is_that_of_huggingface_hub(monkeypatch):
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert hub.hub_cache() == Path("/xdg/huggingface/hub")
    monkeypatch.setenv("HF_HOME", "/hf")
    assert hub.hub_cache() == Path("/hf/hub")
    monkeypatch.setenv("HF_HUB_CACHE", "/hub")
    assert hub.hub_cache() == Path("/hub")
