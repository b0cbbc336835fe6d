"""Prometheus and Grafana beside a cluster's head, on its loopback; they end with whoever started them.

Prometheus reads the page of each Ray node, and the front door's for the apps, without the nodes that the door would
repeat. Its data and the cluster's key are in a private folder of this machine; what Grafana is set up from is in the
cluster's own folder, dashboards as files among it, and stays there.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from matrix.cluster import grafana
from matrix.cluster.reaper import MARK
from matrix.cluster.states import Node, write

HOST = "127.0.0.1"
_KEEP = ("--storage.tsdb.retention.time=7d", "--storage.tsdb.retention.size=2GB")
# Of Ray's own calls: half of the thousand and more lines of each node, and on no dashboard.
_LEFT_OUT = "ray_(grpc|operation)_.*"
# Where packages put them, if a job's PATH doesn't have it.
_PLACES = ("/usr/local/bin", "/usr/bin", "/usr/sbin", "/usr/share/grafana/bin")
_LAST_LINES = 5
_NO_PROMETHEUS = (
    "cluster.monitoring: there is no prometheus on the head's node, so nothing is collected: install it "
    "(Debian, Ubuntu: apt-get install prometheus; else the binary from prometheus.io/download) where PATH has it"
)
_NO_GRAFANA = (
    "cluster.monitoring: there is no grafana-server on the head's node, so nothing is shown there: install it "
    "(grafana.com/grafana/download) where PATH has it, or import {dashboards}/*.json into a Grafana elsewhere"
)


class Monitoring:
    """Start it, tell it every few seconds what there is, end it.

    Args:
        folder: The cluster's, on the shared file system; `monitoring/` in it holds set-up, dashboards and logs.
        temp_dir: A private folder of this machine; `monitoring/` in it holds all that goes at the end.
        api_key: Gives the cluster's key, which the front door asks for; only called while there is one.
        say: Takes what the user should know.
        scrape_s: Seconds between two looks at a page.
    """

    def __init__(
        self,
        folder: Path,
        temp_dir: Path,
        api_key: Callable[[], str | None],
        say: Callable[[str], None],
        scrape_s: float = 10,
    ) -> None:
        self._folder = folder / "monitoring"
        self._private = temp_dir / "monitoring"
        self._api_key = api_key
        self._say = say
        self._scrape_s = scrape_s
        self._mark = secrets.token_hex(8)
        self._reaper: subprocess.Popen[bytes] | None = None
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._told: dict[str, Any] = {}

    def start(self) -> dict[str, int]:
        """Start what is installed; what isn't is said.

        Returns:
            The ports on loopback of `prometheus` and `grafana`, of those that were started.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._private.mkdir(parents=True, exist_ok=True, mode=0o700)
        shown = grafana.write_dashboards(self._folder)
        ports = {}
        collector, server = _find("prometheus"), _find("grafana") or _find("grafana-server")
        if collector is None:
            self._say(_NO_PROMETHEUS)
        else:
            ports["prometheus"] = _free_port()
            self._run("prometheus", self._prometheus(collector, ports["prometheus"]))
        if server is None:
            self._say(_NO_GRAFANA.format(dashboards=shown))
        elif collector is not None:
            # Without Prometheus it would have nothing to show.
            ports["grafana"] = _free_port()
            source = f"http://{HOST}:{ports['prometheus']}"
            data = self._private / "grafana"
            self._run("grafana", grafana.set_up(server, HOST, ports["grafana"], source, self._folder, data))
        return ports

    def update(
        self, nodes: Iterable[Node], front_door: str | None, partitions: Mapping[str, str] | None = None
    ) -> None:
        """Tell what there is to look at now.

        Args:
            nodes: The head and the workers; those that are gone or have no page are passed over.
            front_door: `http://HOST:PORT` of the front door, if there is one.
            partitions: Slurm's partitions by job id.
        """
        self._check()
        if "prometheus" not in self._running:
            return
        known = partitions or {}
        pages = [
            {"targets": [node.metrics], "labels": {"node": node.host, "partition": known.get(node.job_id, "")}}
            for node in sorted(nodes, key=lambda node: node.metrics)
            if node.metrics and node.is_fresh and node.phase in {"up", "draining"}
        ]
        self._tell("nodes.json", pages)
        key = self._api_key() if front_door else None
        if front_door and key:
            self._tell("key", key)
            self._tell("apps.json", [{"targets": [front_door.removeprefix("http://").rstrip("/")]}])
        else:
            self._tell("apps.json", [])

    def end(self) -> None:
        """End both and remove their data; returns when nothing of them is left."""
        if self._reaper is not None:
            self._reaper.communicate()
        for process in self._running.values():
            process.wait()
        self._running.clear()
        shutil.rmtree(self._private, ignore_errors=True)

    def _run(self, name: str, command: list[str]) -> None:
        if self._reaper is None:
            # Not one of the cluster's own processes: who ends those would end it before its work is done.
            environment = {key: value for key, value in os.environ.items() if key != MARK}
            self._reaper = subprocess.Popen(
                [sys.executable, "-m", "matrix.cluster.reaper", self._mark, str(self._private)],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        with self._log(name).open("wb") as output:
            self._running[name] = subprocess.Popen(
                command,
                # Nothing of the head's: Ray's token is there, and Grafana takes settings from variables.
                env={MARK: self._mark, "PATH": os.environ.get("PATH", os.defpath)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _check(self) -> None:
        for name, process in list(self._running.items()):
            if process.poll() is not None:
                del self._running[name]
                lines = self._log(name).read_text(errors="replace").splitlines()[-_LAST_LINES:]
                self._say("\n".join([f"cluster.monitoring: {name} has ended; its last lines:", *lines]))

    def _tell(self, name: str, what: Any) -> None:
        if self._told.get(name) != what:
            write(self._private / name, what if isinstance(what, str) else json.dumps(what), 0o600)
            self._told[name] = what

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def _prometheus(self, binary: str, port: int) -> list[str]:
        for name in ("nodes.json", "apps.json"):
            self._tell(name, [])
        config = self._private / "prometheus.yml"
        jobs = [
            {
                "job_name": "nodes",
                "file_sd_configs": [{"files": [str(self._private / "nodes.json")]}],
                "metric_relabel_configs": [{"source_labels": ["__name__"], "regex": _LEFT_OUT, "action": "drop"}],
            },
            {
                "job_name": "apps",
                # The nodes are read by themselves: as many at a time as there are, and not counted twice.
                "params": {"nodes": ["0"]},
                "authorization": {"credentials_file": str(self._private / "key")},
                "file_sd_configs": [{"files": [str(self._private / "apps.json")]}],
            },
        ]
        every = f"{self._scrape_s:g}s"
        interval = {"scrape_interval": every, "scrape_timeout": every}
        write(config, yaml.safe_dump({"global": interval, "scrape_configs": jobs}))
        return [
            binary,
            f"--config.file={config}",
            f"--storage.tsdb.path={self._private / 'data'}",
            f"--web.listen-address={HOST}:{port}",
            "--log.level=warn",
            *_KEEP,
        ]


def _find(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *_PLACES]))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
