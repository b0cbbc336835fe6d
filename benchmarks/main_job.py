"""How long `python run.py` takes, and how much of that is the engine's: `python benchmarks/main_job.py [--repeat 3]`.

Three ways to answer the same 48 questions with the same model on the same machine, one after another, repeated:

- cold: `python run.py tracker=none`, nothing running before;
- engine up: the second job of a sweep, which finds cluster and engine of the first;
- limit: vLLM's own server started with the same flags, and the same request bodies sent by plain aiohttp. What it takes
  is the engine's part; nothing of matrix, Ray or Serve is in it.

Memory is the proportional set size (PSS) of all processes of the run, the highest of the samples taken every 0.5 s.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Self

import aiohttp

from matrix.apps.launch import HOST, PORT, launch_of
from matrix.apps.process import free_port
from matrix.compose import compose_spec
from matrix.models.source import resolve

ROOT = Path(__file__).parent.parent


def main() -> None:
    """Measure and print a table and the raw figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    repeat = parser.parse_args().repeat
    measured: dict[str, list[dict[str, float]]] = {"cold": [], "engine up": [], "limit": []}
    for _ in range(repeat):
        with tempfile.TemporaryDirectory() as folder:
            cold = run_job(Path(folder), "run.dir=cold")
            measured["cold"].append(figures(Path(folder, "cold"), cold))
            limit = run_limit(Path(folder, "cold"))
            measured["limit"].append(limit)
        with tempfile.TemporaryDirectory() as folder:
            run_job(Path(folder), "-m", "seed=0,1", "hydra.sweep.dir=sweep")
            measured["engine up"].append(figures(Path(folder, "sweep", "1"), {}))
    print(json.dumps(measured, indent=1))
    for name, runs in measured.items():
        for key in runs[0]:
            values = [run[key] for run in runs]
            print(f"{name:10} {key:32} {statistics.median(values):8.2f}   ({min(values):.2f} to {max(values):.2f})")


def run_job(cwd: Path, *overrides: str) -> dict[str, float]:
    """Run `python run.py`; return seconds by the wall and the peak of memory."""
    started = time.monotonic()
    command = [sys.executable, str(ROOT / "run.py"), "tracker=none", *overrides]
    with (cwd / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=cwd, stdout=log, stderr=log)
        with MemoryWatch(process.pid) as memory:
            process.wait()
    if process.returncode:
        raise SystemExit((cwd / "log").read_text())
    return {"command, start to exit, s": time.monotonic() - started, "memory, peak PSS, GB": memory.peak_gb}


def figures(run_dir: Path, more: dict[str, float]) -> dict[str, float]:
    """What a run dir says of its times."""
    summary = json.loads((run_dir / "summary.json").read_text())
    times = summary["time_s"]
    return {
        "until the first row, s": times["total"] - times["workload"] + times["first_row"],
        "until the last row, s": times["total"],
        "engine start, s": times["engine_start"],
        "workload, s": times["workload"],
        "generated tokens": summary["tokens"]["completion"],
        **more,
    }


def run_limit(run_dir: Path) -> dict[str, float]:
    """Start vLLM's server as the app does, and send it the run's own requests."""
    spec = compose_spec(["tracker=none"])
    assert spec.model.source is not None
    launch = launch_of(spec.engine, spec.model, resolve(spec.model.source, print), "key", cpu=True, nodes=1)
    port = str(free_port("127.0.0.1"))
    command = [{HOST: "127.0.0.1", PORT: port}.get(part, part) for part in launch.commands[0]]
    environment = os.environ | launch.environment
    bodies = [json.loads(line)["request"] for line in (run_dir / "rows.jsonl").read_text().splitlines()]
    started = time.monotonic()
    guarded = [sys.executable, "-m", "matrix.apps.guard", *command]
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(guarded, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log)
        with MemoryWatch(server.pid) as memory:
            times = asyncio.run(_send_all(f"http://127.0.0.1:{port}", bodies, started))
        server.communicate()
    return {**times, "memory, peak PSS, GB": memory.peak_gb}


async def _send_all(root: str, bodies: list[dict[str, Any]], started: float) -> dict[str, float]:
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(headers={"Authorization": "Bearer key"}, timeout=timeout) as session:
        while True:
            try:
                async with session.get(f"{root}/health") as answer:
                    if answer.status == 200:
                        break
            except aiohttp.ClientError:
                await asyncio.sleep(0.25)
        ready = time.monotonic()
        ends: list[float] = []
        tokens = 0

        async def one(body: dict[str, Any]) -> None:
            nonlocal tokens
            async with session.post(f"{root}/v1/chat/completions", json=body) as answer:
                tokens += (await answer.json())["usage"]["completion_tokens"]
            ends.append(time.monotonic())

        await asyncio.gather(*map(one, bodies))
    return {
        "until the first row, s": ends[0] - started,
        "until the last row, s": ends[-1] - started,
        "engine start, s": ready - started,
        "workload, s": ends[-1] - ready,
        "generated tokens": tokens,
    }


class MemoryWatch:
    """Samples the memory of a process and all below it while the block runs."""

    def __init__(self, pid: int) -> None:
        self.peak_gb = 0.0
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            self.peak_gb = max(self.peak_gb, sum(map(_pss_gb, _tree(self._pid))))


def _tree(root: int) -> set[int]:
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found, front = set(), {root}
    while front:
        found |= front
        front = {pid for pid, parent in parents.items() if parent in front}
    return found


def _pss_gb(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1e6


if __name__ == "__main__":
    main()
