"""`serving.py engine`: one replica of the simulated engine, which takes no time itself, by each way to it.

- limit: `python -m matrix.serving` under uvicorn on loopback, started by hand, without a key and without Ray (`alone`:
  before the cluster is started; in the rounds the idle cluster is there for all rows). `limit with key`: another one
  that asks for a key, which tells the price of the lock from that of being deployed;
- data plane: the replica that `matrix deploy_applications` deployed, at its own URL, with the cluster's key;
- front door: the same replica at `/sim/v1` of the door, one more process on the same two cores;
- gRPC: the same replica at its `grpc://` URL.

The last word of a row is its client (`clients.py`). `wire` costs so little that the server is what is measured, so that
limit, data plane and door are compared by it. `ModelClient` is what pipelines use, and speaks HTTP and gRPC. `aiohttp`
is common practice. The server's CPU is that of all processes that a request passes: replica, and door.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from kept import ROOT, Kept, cpu_s, pid_at, server_below
from processes import busy_s, say
from tables import Runs, ratio, show

from matrix.apps import own
from matrix.compose import compose_spec

OVERRIDES = (
    "engine=simulated",
    "engine.first_token_s=0",
    "engine.token_s=0",
    "engine.output_tokens=16",
    "engine.grpc=true",
    "model=api",
    "model.name=sim",
)
SECONDS = 3.0
LARGE = 100_000
COLUMNS = {
    "rate": ("requests/s", ",.0f"),
    "p50_ms": ("p50 ms", ",.1f"),
    "p99_ms": ("p99 ms", ",.1f"),
    "server_ms": ("server CPU ms each", ".3f"),
    "client_ms": ("client CPU ms each", ".3f"),
    "others": ("cores others took", ".2f"),
}
LIMIT, LOCKED = "limit, wire", "limit with key, wire"
DATA_PLANE, DOOR = "data plane, wire", "front door, wire"
HTTP, GRPC = "data plane, ModelClient", "gRPC, ModelClient"


@dataclass(frozen=True)
class Way:
    """One way to the engine.

    Attributes:
        client: One of `clients.py`.
        url: Where it asks.
        pids: The processes that a request passes.
        key: API key; None: none is asked for.
    """

    client: str
    url: str
    pids: list[int]
    key: str | None = None

    def measure(self, in_flight: int, seconds: float, prompt_bytes: int = 0) -> dict[str, float]:
        """Send requests for so long, from a fresh process.

        Raises:
            SystemExit: One wasn't answered.
        """
        command = [sys.executable, "benchmarks/clients.py", self.client, self.url, "0", "--model", "sim"]
        command += ["--in-flight", str(in_flight), "--seconds", str(seconds), "--prompt-bytes", str(prompt_bytes)]
        environment = {**os.environ, "BENCHMARK_API_KEY": self.key} if self.key else dict(os.environ)
        served_s, all_s, began = cpu_s(self.pids), busy_s(), time.monotonic()
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall_s = time.monotonic() - began
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with exit code {process.returncode}")
        served_s = cpu_s(self.pids) - served_s
        others_s = busy_s() - all_s - served_s - usage.ru_utime - usage.ru_stime
        found = json.loads(said.splitlines()[-1])
        return {
            "rate": found["requests"] / found["seconds"],
            "p50_ms": found["p50_s"] * 1e3,
            "p99_ms": found["p99_s"] * 1e3,
            # The first round, which opens the connections, isn't in the client's own figures.
            "server_ms": served_s / (found["requests"] + in_flight) * 1e3,
            "client_ms": found["cpu_s"] / found["requests"] * 1e3,
            "others": max(others_s / wall_s, 0.0),
        }


def measure(repeat: int, scale: float) -> dict[str, Runs]:
    """Measure all ways and print a table for each number of requests in flight."""
    seconds = SECONDS * scale
    small = {in_flight: f"short prompt, {in_flight} in flight" for in_flight in (64, 512)}
    large = f"prompt of {LARGE // 1000} kB, 64 in flight"
    results: dict[str, Runs] = {title: {} for title in (*small.values(), large)}

    def one(title: str, name: str, way: Way, in_flight: int, prompt_bytes: int = 0) -> None:
        figures = way.measure(in_flight, seconds, prompt_bytes)
        results[title].setdefault(name, []).append(figures)
        say(f"{title}: {name}: {figures}")

    with limit() as bare, limit(key=secrets.token_urlsafe(32)) as locked:
        for in_flight, title in small.items():
            one(title, "limit alone, wire", bare, in_flight)
        with Kept() as cluster:
            say("deploying ...")
            cluster.deploy(*OVERRIDES)
            ways = {LIMIT: bare, LOCKED: locked, **deployed(cluster)}
            for number in range(repeat):
                # Each round begins with another one, so that none always has the warm or the quiet machine.
                names = list(ways)[number % len(ways) :] + list(ways)[: number % len(ways)]
                for in_flight, title in small.items():
                    for name in names:
                        one(title, name, ways[name], in_flight)
                for name in (HTTP, GRPC)[:: -1 if number % 2 else 1]:
                    one(large, name, ways[name], 64, LARGE)
    for title, runs in results.items():
        show(title, COLUMNS, runs)
        for name, than in ((DATA_PLANE, LIMIT), (DATA_PLANE, LOCKED), (DOOR, LIMIT), (HTTP, DATA_PLANE), (GRPC, HTTP)):
            if name in runs and than in runs:
                rate, cpu = (ratio(runs[name], runs[than], key) for key in ("rate", "server_ms"))
                print(f"{name}, against {than}: {rate} the requests/s, {cpu} the server's CPU for each")
    return results


@contextmanager
def limit(key: str | None = None) -> Iterator[Way]:
    """The engine's server with the same engine, on its own."""
    app = compose_spec([*OVERRIDES, "tracker=none"]).all_apps()["sim"]
    serving = own.launch(app.engine, app.model, "").environment["MATRIX_SERVING"]
    environment = {name: value for name, value in os.environ.items() if name != "MATRIX_API_KEY"}
    if key is not None:
        environment["MATRIX_API_KEY"] = key
    guarded = [sys.executable, "-m", "matrix.apps.guard", sys.executable, "-m", "matrix.serving", "--port", "0"]
    with subprocess.Popen(
        guarded,
        cwd=ROOT,
        env={**environment, "MATRIX_SERVING": serving, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        url = process.stdout.readline().strip()
        yield Way("wire", url, [server_below(process.pid)], key)
        process.stdin.close()


def deployed(cluster: Kept) -> dict[str, Way]:
    """The ways to the deployed app."""
    app = cluster.metadata("sim")
    ends, key = app["endpoints"], app["api_key"]
    url, replica, door = ends["workers"][0], pid_at(ends["workers"][0]), pid_at(ends["head"])
    return {
        DATA_PLANE: Way("wire", url, [replica], key),
        DOOR: Way("wire", ends["head"], [replica, door], key),
        "data plane, aiohttp": Way("aiohttp", url, [replica], key),
        HTTP: Way("client", url, [replica], key),
        GRPC: Way("client", ends["grpc"][0], [replica], key),
    }
