"""The processes of `data_plane.py`: the server, and each client in a fresh one, with what it used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.request import urlopen

HERE = Path(__file__).parent
ROOT = HERE.parent

# How a user runs it: the pipeline with journal, retries, progress and affinity, no tracker and no scorers.
OVERRIDES = (
    "engine=openai",
    "engine.base_url={url}",
    "engine.api_key_env=null",
    "pipeline=generate",
    "dataset.path=rows.jsonl",
    "workload.concurrency={in_flight}",
    "tracker=none",
    "run.dir=run",
)

FAIR_MATRIX = ROOT / ".cache" / "fair-matrix"
# What `matrix.client.query_llm` of 0.2.6 imports, in the versions that its own metadata asks for. No Ray: the client
# doesn't need it. protobuf is that of its grpcio-tools.
FAIR_MATRIX_NEEDS = (
    *("aiohttp~=3.12", "fire", "grpcio==1.70.0", "httpx~=0.28", "jinja2", "openai~=1.90", "portalocker"),
    *("protobuf<6", "psutil", "pyyaml", "requests~=2.32", "tqdm"),
)


@dataclass(frozen=True)
class Used:
    """What a process used from start to exit, with all that it waited for.

    Attributes:
        wall_s: Seconds by the wall.
        cpu_s: Seconds of CPU, system included.
        rss_mb: Highest resident set size.
        others: Cores that everything else on the machine was busy with meanwhile, the server excepted.
    """

    wall_s: float
    cpu_s: float
    rss_mb: float
    others: float


class Server:
    """The mock server, as a process that can't outlive this one.

    Args:
        latency_s: Seconds before each answer.
        broken: Share of requests that get 503.
    """

    def __init__(self, latency_s: float, broken: float = 0.0) -> None:
        script = [str(HERE / "mock_server.py"), "--latency", str(latency_s), "--broken", str(broken)]
        guarded = [sys.executable, "-m", "matrix.apps.guard", sys.executable, *script]
        self._process = subprocess.Popen(guarded, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()

    def stats(self) -> dict[str, float]:
        """Its own counts; see `mock_server.py`."""
        with urlopen(f"{self.url.removesuffix('/v1')}/stats") as answer:
            found: dict[str, float] = json.load(answer)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


def run(
    command: Sequence[str], cwd: Path, server: Server, sample: Callable[[int], None] | None = None
) -> tuple[str, Used]:
    """Run a command to its end; returns its stdout and what it used.

    Args:
        command: Program and arguments.
        cwd: Where it runs; its output goes to files there.
        server: The server that it talks to.
        sample: Called about twice a second with the process id while it runs.

    Raises:
        SystemExit: It failed; with the end of what it said.
    """
    busy, served, began = busy_s(), server.stats()["cpu_s"], time.monotonic()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with (cwd / "stdout").open("wb") as out, (cwd / "stderr").open("wb") as err:
        process = subprocess.Popen(command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
    try:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG if sample else 0)
        while sample and not pid:
            sample(process.pid)
            time.sleep(0.5)
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
    except BaseException:
        process.kill()
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    wall_s = time.monotonic() - began
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}\n{(cwd / 'stderr').read_text()[-4000:]}")
    cpu_s = usage.ru_utime + usage.ru_stime
    others = (busy_s() - busy - cpu_s - (server.stats()["cpu_s"] - served)) / wall_s
    return (cwd / "stdout").read_text(), Used(wall_s, cpu_s, usage.ru_maxrss / 1024, max(others, 0.0))


def run_client(command: Sequence[str], server: Server) -> tuple[dict[str, float], Used]:
    """Run a client that reports itself (`measure.py`)."""
    with tempfile.TemporaryDirectory() as folder:
        stdout, used = run(command, Path(folder), server)
    figures: dict[str, float] = json.loads(stdout.splitlines()[-1])
    return figures, used


def run_matrix(
    server: Server, rows: int, in_flight: int, sample: Callable[[Path, int], None] | None = None
) -> tuple[dict[str, Any], Used]:
    """Run `python run.py` over generated rows; returns its summary and what it used.

    Args:
        server: Who answers.
        rows: Rows of the data set.
        in_flight: Requests in flight.
        sample: Called about twice a second with the run dir and the process id.

    Raises:
        SystemExit: It failed, or a row has no answer.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "rows.jsonl", rows)
        overrides = [text.format(url=server.url, in_flight=in_flight) for text in OVERRIDES]
        watch = None if sample is None else (lambda pid: sample(folder / "run", pid))
        _, used = run([sys.executable, str(ROOT / "run.py"), *overrides], folder, server, watch)
        summary: dict[str, Any] = json.loads((folder / "run" / "summary.json").read_text())
    if summary["rows"]["ok"] != rows:
        raise SystemExit(f"{rows} rows went in, {summary['rows']} came out")
    return summary, used


def write_rows(path: Path, rows: int) -> None:
    """Write ready chat messages, about 90 bytes each."""
    with path.open("w") as file:
        for number in range(rows):
            question = f"What is {number} + 25? Answer with the number."
            file.write(f'{{"messages":[{{"role":"user","content":"{question}"}}]}}\n')


def fair_matrix_python() -> str:
    """Python of the environment of fair-matrix 0.2.6, which is made if it isn't there (about a minute)."""
    python = FAIR_MATRIX / "bin" / "python"
    ready = FAIR_MATRIX / "ready"
    if not ready.exists():
        print(f"Making {FAIR_MATRIX} for fair-matrix ...", file=sys.stderr)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(FAIR_MATRIX)],
            [*pip, "--no-deps", "fair-matrix==0.2.6"],
            [*pip, *FAIR_MATRIX_NEEDS],
        ):
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
        ready.touch()
    return str(python)


def say(text: str) -> None:
    """Tell what is going on, on stderr."""
    print(text, file=sys.stderr, flush=True)


def busy_s() -> float:
    """CPU seconds that all cores of the machine were busy since its start (proc(5), /proc/stat)."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, _first_line("/proc/stat").split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _first_line(path: str) -> str:
    with open(path) as file:  # noqa: PTH123 - read many times
        return file.readline()
