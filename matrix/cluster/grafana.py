"""What Grafana is set up from: its configuration, a data source, and the dashboards as files."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import yaml

from matrix.cluster.states import write

_HOME = "/usr/share/grafana"


def dashboards() -> dict[str, str]:
    """The dashboards in Grafana's JSON, by name."""
    found = resources.files("matrix.cluster") / "dashboards"
    return {one.name.removesuffix(".json"): one.read_text() for one in found.iterdir() if one.name.endswith(".json")}


def write_dashboards(folder: Path) -> Path:
    """Write them where they can be read and imported from; returns that folder.

    Args:
        folder: That of monitoring.
    """
    to = folder / "dashboards"
    to.mkdir(exist_ok=True)
    for name, text in dashboards().items():
        write(to / f"{name}.json", text)
    return to


def set_up(binary: str, host: str, port: int, prometheus: str, folder: Path, data: Path) -> list[str]:
    """Write what it needs.

    Args:
        binary: `grafana-server`, or `grafana` of version 10 on.
        host: Where it listens.
        port: The same.
        prometheus: URL of Prometheus.
        folder: That of monitoring, dashboards included.
        data: Folder for its own data.

    Returns:
        The command line.
    """
    provisioning = folder / "provisioning"
    source = {
        "name": "Prometheus",
        "uid": "matrix",
        "type": "prometheus",
        "access": "proxy",
        "url": prometheus,
        "isDefault": True,
    }
    provider = {"name": "matrix", "type": "file", "options": {"path": str(folder / "dashboards")}}
    for kind, name, what in (("datasources", "datasources", source), ("dashboards", "providers", provider)):
        (provisioning / kind).mkdir(parents=True, exist_ok=True)
        write(provisioning / kind / "matrix.yaml", yaml.safe_dump({"apiVersion": 1, name: [what]}))
    config = folder / "grafana.ini"
    # Everybody there may look, and nobody can change anything: no login, no admin with a password that is known.
    text = f"""\
[server]
http_addr = {host}
http_port = {port}
[paths]
data = {data}
logs = {data / "log"}
plugins = {data / "plugins"}
provisioning = {provisioning}
[auth]
disable_login_form = true
[auth.basic]
enabled = false
[auth.anonymous]
enabled = true
org_role = Viewer
[security]
disable_initial_admin_creation = true
[dashboards]
default_home_dashboard_path = {folder / "dashboards" / "cluster.json"}
[analytics]
reporting_enabled = false
check_for_updates = false
check_for_plugin_updates = false
[news]
news_feed_enabled = false
"""
    write(config, text)
    command = [binary] if Path(binary).name == "grafana-server" else [binary, "server"]
    return [*command, "--homepath", _home(binary), "--config", str(config)]


def _home(binary: str) -> str:
    """Its own files: beside the binary in its archive, in one place in its packages."""
    beside = Path(binary).resolve().parent.parent
    return str(beside) if (beside / "conf" / "defaults.ini").is_file() else _HOME
