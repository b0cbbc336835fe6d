"""The part of `matrix status` that only a cluster of jobs has: head, workers, runs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

_TYPED = 60
"""Characters of a command that are shown."""


def show_jobs(found: Mapping[str, Any]) -> None:
    """Print it.

    Args:
        found: What `matrix.cluster.report.describe` gives.
    """
    console = Console(highlight=False, soft_wrap=True)
    head = found["head"]
    where = f" on {head['host']} ({head['address'] or head['ip']})" if "host" in head else ""
    console.print(f"cluster {found['id']}: {found['phase']}; head: job {head['job']} {_state(head)}{where}")
    if head.get("detail"):
        console.print(f"  {head['detail']}", markup=False)
    for line in found["trouble"]:
        console.print(f"  {line}", markup=False)
    for name, port in {"dashboard": head.get("dashboard_port"), **head.get("monitoring", {})}.items():
        if port:
            console.print(f"{name}: ssh -N -L {port}:127.0.0.1:{port} {head['host']}, then http://127.0.0.1:{port}")
    console.print(f"folder: {found['folder']}")
    if found["workers"]:
        console.print(_workers(found["workers"]))
    if found["commands"]:
        console.print(_commands(found["commands"]))


def _workers(workers: list[dict[str, Any]]) -> Table:
    table = Table()
    for column in ("worker job", "Slurm", "node", "ray", "until"):
        table.add_column(column, overflow="fold")
    for worker in workers:
        hosts = ", ".join(node["host"] for node in worker["on"])
        phases = ", ".join(sorted({node["phase"] for node in worker["on"]}))
        replaces = f" (for {worker['replaces']})" if worker["replaces"] else ""
        table.add_row(f"{worker['job']}{replaces}", _state(worker), hosts, phases, _until(worker["ends"]))
    return table


def _commands(commands: list[dict[str, Any]]) -> Table:
    table = Table()
    for column in ("run", "state", "since", "what"):
        table.add_column(column, overflow="fold")
    for command in commands:
        code = command["exit_code"]
        state = command["phase"] + (f" ({code})" if code else "")
        since = time.strftime("%m-%d %H:%M", time.localtime(command["submitted"]))
        typed = " ".join(command["argv"])
        what = command["run_dir"] or (typed if len(typed) < _TYPED else f"{typed[:_TYPED]} ...")
        table.add_row(command["key"], state, since, what)
    return table


def _state(job: Mapping[str, Any]) -> str:
    reason = f" ({job['reason']})" if job["reason"] and job["state"] == "PENDING" else ""
    return f"{job['state']}{reason}"


def _until(ends: float | None) -> str:
    return time.strftime("%m-%d %H:%M", time.localtime(ends)) if ends else ""
