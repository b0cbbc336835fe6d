"""`serving.py deploy`: seconds until an app with vLLM is healthy, against vLLM's own server.

- vllm serve: command line and environment of the replica's engine (`matrix.apps.vllm`), started by hand; from there to
  the first 200 of /health;
- deploy, from nothing: `matrix deploy_applications model=smollm2` without a cluster: Ray and Serve are started too;
- deploy, cluster up: the same after the app was removed; Ray, Serve and the front door are there.

A deploy counts from the start of the command to its exit, with Python's imports before and what is done once the app is
healthy. The other columns say where the time goes: until the engine's process is started, and until the app is known to
be healthy. What vLLM reads from disk is read once before the first round.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from kept import Kept
from processes import say
from tables import Runs, ratio, show

from matrix.apps.launch import HOST, PORT, launch_of
from matrix.apps.process import GuardedProcess, free_port
from matrix.compose import compose_spec
from matrix.models.source import ResolvedModel, resolve

APP = "smollm2"
COLUMNS = {
    "started_s": ("engine is started, s", ".1f"),
    "healthy_s": ("healthy, s", ".1f"),
    "seconds": ("in all, s", ".1f"),
}
SERVE, COLD, WARM = "vllm serve", "deploy, from nothing", "deploy, cluster up"
_POLL_S = 0.1
_LIMIT_S = 600.0


def measure(repeat: int, _scale: float) -> Runs:
    """Measure all three in turns, and print a table."""
    runs: Runs = {}
    warm_up()
    for number in range(repeat):
        for contender in (serve, deploy)[:: -1 if number % 2 else 1]:
            for name, figures in contender().items():
                say(f"{number + 1}/{repeat} {name}: {figures}")
                runs.setdefault(name, []).append(figures)
    show(f"Seconds until model={APP} is healthy", COLUMNS, runs)
    for name in (WARM, COLD):
        more = [ours["seconds"] - theirs["seconds"] for ours, theirs in zip(runs[name], runs[SERVE], strict=True)]
        share = ratio(runs[name], runs[SERVE], "seconds")
        print(f"{name}, against {SERVE}: {min(more):.1f} to {max(more):.1f} s more, {share}")
    return runs


def warm_up() -> None:
    """Have the files read that vLLM needs, so that the first contender doesn't pay for the others."""
    subprocess.run([sys.executable, "-c", "import vllm.entrypoints.openai.api_server"], check=True, capture_output=True)
    for file in Path(_source().path).glob("*.safetensors"):
        file.read_bytes()


def serve() -> dict[str, dict[str, float]]:
    """Start vLLM's own server as the replica does, and end it.

    Raises:
        SystemExit: It doesn't become healthy.
    """
    app = compose_spec([f"model={APP}", "tracker=none"]).all_apps()[APP]
    launch = launch_of(app.engine, app.model, _source(), "key", cpu=True, nodes=1)
    port = str(free_port("127.0.0.1"))
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        engine = GuardedProcess(
            launch.title,
            launch.commands[0],
            launch.environment,
            Path(folder, "log"),
            {HOST: "127.0.0.1", PORT: port},
        )
        started_s = time.monotonic() - began
        while not _answers(f"http://127.0.0.1:{port}/health"):
            if engine.exit_code is not None or time.monotonic() - began > _LIMIT_S:
                raise SystemExit(engine.failure())
            time.sleep(_POLL_S)
        seconds = time.monotonic() - began
        engine.end()
    return {SERVE: {"started_s": started_s, "healthy_s": seconds, "seconds": seconds}}


def deploy() -> dict[str, dict[str, float]]:
    """Deploy onto nothing, remove the app, deploy again."""
    with Kept() as cluster:
        cold = _deploy(cluster)
        cluster.deploy("--action", "remove", f"app={APP}")
        return {COLD: cold, WARM: _deploy(cluster)}


def _deploy(cluster: Kept) -> dict[str, float]:
    began = time.monotonic()
    seen: dict[str, float] = {}

    def on_line(line: str) -> None:
        # `  12 s  smollm2: loading, 0 of 1 replicas (...)`: a line for each phase, and then and when.
        for phase, key in (("loading", "started_s"), ("healthy", "healthy_s")):
            if f" {APP}: {phase}," in line:
                seen.setdefault(key, time.monotonic() - began)

    seconds = cluster.command("deploy_applications", f"model={APP}", on_line=on_line)
    return {**seen, "seconds": seconds}


def _source() -> ResolvedModel:
    source = compose_spec([f"model={APP}", "tracker=none"]).model.source
    assert source is not None
    return resolve(source, say)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
