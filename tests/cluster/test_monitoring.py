"""Prometheus and Grafana beside a head: what they are given, and that they end. Here both are stand-ins."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from matrix.cluster import monitoring
from matrix.cluster.grafana import dashboards
from matrix.cluster.monitoring import Monitoring
from matrix.cluster.reaper import of_cluster
from matrix.cluster.states import Node
from tests.command import environment

WORKER = Node("7_0", "n1", "10.0.0.1", 1, "up", metrics="10.0.0.1:4001", heartbeat=4e9)


@pytest.fixture
def binaries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH in which servers are looked for."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setattr(monitoring, "_PLACES", ())
    monkeypatch.setenv("PATH", str(folder))
    return folder


def stand_in(folder: Path, name: str) -> None:
    binary = folder / name
    binary.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {folder / name}.args\nexec /bin/sleep 600\n')
    binary.chmod(0o755)


def arguments(folder: Path, name: str) -> list[str]:
    path = folder / f"{name}.args"
    until(lambda: path.is_file() and path.stat().st_size > 0)
    return path.read_text().splitlines()


def until(true: Any) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Watched:
    """Monitoring, and what it said."""

    def __init__(self, folder: Path) -> None:
        self.said: list[str] = []
        self.private = folder / "tmp" / "monitoring"
        self.shared = folder / "cluster" / "monitoring"
        self.monitoring = Monitoring(folder / "cluster", folder / "tmp", lambda: "secret", self.said.append)

    def targets(self, job: str = "nodes") -> dict[str, dict[str, str]]:
        """Labels by address, as Prometheus reads them."""
        groups = json.loads((self.private / f"{job}.json").read_text())
        return {address: group.get("labels", {}) for group in groups for address in group["targets"]}


@pytest.fixture
def watched(binaries: Path, tmp_path: Path) -> Any:
    watched = Watched(tmp_path)
    yield watched
    watched.monitoring.end()


def test_targets_follow_the_nodes(watched: Watched, binaries: Path) -> None:
    stand_in(binaries, "prometheus")
    watched.monitoring.start()
    assert watched.targets() == {}
    head = replace(WORKER, job_id="6", host="h", metrics="10.0.0.9:4000")
    watched.monitoring.update([head, WORKER], None, {"7_0": "gpu"})
    assert watched.targets() == {
        "10.0.0.9:4000": {"node": "h", "partition": ""},
        "10.0.0.1:4001": {"node": "n1", "partition": "gpu"},
    }
    draining = replace(WORKER, phase="draining")
    starting = replace(WORKER, metrics="10.0.0.2:4001", phase="starting")
    silent = replace(WORKER, metrics="10.0.0.3:4001", heartbeat=time.time() - 60)
    watched.monitoring.update([draining, starting, silent, replace(head, metrics="")], None)
    assert list(watched.targets()) == ["10.0.0.1:4001"]
    watched.monitoring.update([replace(WORKER, phase="ended")], None)
    assert watched.targets() == {}


def test_the_front_door_is_asked_with_the_key_and_without_the_nodes(watched: Watched, binaries: Path) -> None:
    stand_in(binaries, "prometheus")
    watched.monitoring.start()
    watched.monitoring.update([], "http://10.0.0.1:8000")
    assert list(watched.targets("apps")) == ["10.0.0.1:8000"]
    config = yaml.safe_load((watched.private / "prometheus.yml").read_text())
    door = next(job for job in config["scrape_configs"] if job["job_name"] == "apps")
    assert door["params"] == {"nodes": ["0"]}
    key = Path(door["authorization"]["credentials_file"])
    assert key.read_text() == "secret"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(watched.private.stat().st_mode) == 0o700
    watched.monitoring.update([], None)
    assert watched.targets("apps") == {}


def test_both_listen_on_loopback_only_and_see_no_secret(
    watched: Watched, binaries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(binaries, "prometheus")
    stand_in(binaries, "grafana")
    monkeypatch.setenv("GF_SERVER_HTTP_ADDR", "0.0.0.0")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    ports = watched.monitoring.start()
    for process in watched.monitoring._running.values():
        environ = Path(f"/proc/{process.pid}/environ").read_bytes()
        assert b"RAY_AUTH_TOKEN" not in environ
        assert b"GF_SERVER" not in environ
    assert f"--web.listen-address=127.0.0.1:{ports['prometheus']}" in arguments(binaries, "prometheus")
    server, *options = arguments(binaries, "grafana")
    assert server == "server"
    ini = Path(options[options.index("--config") + 1]).read_text()
    assert f"http_addr = 127.0.0.1\nhttp_port = {ports['grafana']}\n" in ini
    source = yaml.safe_load((watched.shared / "provisioning" / "datasources" / "matrix.yaml").read_text())
    assert source["datasources"][0]["url"] == f"http://127.0.0.1:{ports['prometheus']}"
    provider = yaml.safe_load((watched.shared / "provisioning" / "dashboards" / "matrix.yaml").read_text())
    path = Path(provider["providers"][0]["options"]["path"])
    assert {file.name for file in path.iterdir()} == {"cluster.json", "apps.json", "runs.json", "agents.json"}
    assert watched.said == []


def test_what_is_missing_is_named_and_the_rest_works(watched: Watched, binaries: Path) -> None:
    assert watched.monitoring.start() == {}
    watched.monitoring.update([WORKER], None)
    assert re.search("no prometheus .*apt-get install prometheus", watched.said[0])
    assert re.search("no grafana-server .*grafana.com", watched.said[1])
    shown = watched.shared / "dashboards"
    assert str(shown) in watched.said[1]
    assert json.loads((shown / "runs.json").read_text())["title"] == "Runs"
    watched.monitoring.end()
    stand_in(binaries, "prometheus")
    assert list(watched.monitoring.start()) == ["prometheus"]
    assert len(watched.said) == 3
    assert "grafana" in watched.said[2]


def test_one_that_ends_is_said_once(watched: Watched, binaries: Path) -> None:
    (binaries / "prometheus").write_text("#!/bin/sh\necho the disk is full\nexit 1\n")
    (binaries / "prometheus").chmod(0o755)
    watched.monitoring.start()
    process = watched.monitoring._running["prometheus"]
    until(lambda: process.poll() is not None)
    for _ in range(2):
        watched.monitoring.update([WORKER], None)
    (said,) = [text for text in watched.said if "has ended" in text]
    assert said.endswith("prometheus has ended; its last lines:\nthe disk is full")


def test_the_end_leaves_nothing(watched: Watched, binaries: Path) -> None:
    stand_in(binaries, "prometheus")
    stand_in(binaries, "grafana-server")
    watched.monitoring.start()
    watched.monitoring.update([WORKER], "http://10.0.0.1:8000")
    mark, private = watched.monitoring._mark, str(watched.private)
    assert len(of_cluster(mark, private)) == 2
    watched.monitoring.end()
    assert of_cluster(mark, private) == []
    assert not watched.private.exists()


def test_a_killed_owner_leaves_nothing(binaries: Path, tmp_path: Path) -> None:
    stand_in(binaries, "prometheus")
    script = f"""
import time
from pathlib import Path
from matrix.cluster.monitoring import Monitoring
monitoring = Monitoring(Path({str(tmp_path)!r}), Path({str(tmp_path)!r}) / "tmp", lambda: None, lambda _: None)
monitoring.start()
print(monitoring._mark, flush=True)
time.sleep(600)
"""
    path = os.pathsep.join([str(binaries), os.defpath])
    owner = subprocess.Popen(
        [sys.executable, "-c", script], env={**environment(), "PATH": path}, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    mark = owner.stdout.readline().strip()
    private = tmp_path / "tmp" / "monitoring"
    assert of_cluster(mark, str(private))
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    until(lambda: not of_cluster(mark, str(private)) and not private.exists())


@pytest.mark.parametrize("name", sorted(dashboards()))
def test_a_dashboard_works_with_any_prometheus(name: str) -> None:
    dashboard = json.loads(dashboards()[name])
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    for panel in dashboard["panels"]:
        assert panel["datasource"]["uid"] == "${datasource}"
        used = {name for target in panel["targets"] for name in re.findall(r"\$(\w+)", target["expr"])}
        assert used <= variables | {"__rate_interval"}, panel["title"]
