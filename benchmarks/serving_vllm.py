"""`serving.py vllm`: tokens/s of `pipeline=generate` against `vllm bench serve`, 64 requests at a time.

One replica of model=smollm2 on the CPU serves all of them in turns, with the same prompts in the same order, 32 greedy
tokens for each (`ignore_eos`), and without its prefix cache, so that no round finds what another one left:

- matrix: `python run.py pipeline=generate cluster=attach` with the app that is there; tokens over the workload's time;
- vllm bench serve: its own figure, over the time of its main run. It streams, which matrix saves the server;
- aiohttp: matrix's own request bodies, sent without streaming by plain aiohttp: the limit.

`command s` is each command from start to exit: imports, the check of the config, the cluster joined; its CPU is taken
from the engine, which could use both cores. A short run of matrix warms the engine up before.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import uvloop
from kept import ROOT, Kept
from processes import say
from tables import Runs, ratio, show

from matrix.compose import compose_spec
from matrix.models.source import resolve

ROWS = 128
TOKENS = 32
IN_FLIGHT = 64
MODEL = "smollm2"
APP = (f"model={MODEL}", "engine.args.enable_prefix_caching=false")
RUN = (
    *APP,
    "cluster=attach",
    "pipeline=generate",
    "tracker=none",
    f"workload.concurrency={IN_FLIGHT}",
    "sampling=greedy",
    f"sampling.max_tokens={TOKENS}",
    "sampling.extra.ignore_eos=true",
)
BENCH = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser

parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""
"""`vllm bench serve`: vLLM's own entry point loads all of its commands, which its CPU build doesn't survive (0.32)."""
COLUMNS = {
    "tokens_per_s": ("generated tokens/s", ",.1f"),
    "seconds": ("seconds", ".1f"),
    "tokens": ("tokens", ",.0f"),
    "command_s": ("command s", ".1f"),
    "cpu_s": ("command CPU s", ".1f"),
}
MATRIX, PEER, LIMIT = "matrix", "vllm bench serve", "aiohttp"


class Contest:
    """What the contenders share: the replica, the prompts, a folder.

    Args:
        cluster: With the app.
        folder: For files.
        rows: Number of prompts.
    """

    def __init__(self, cluster: Kept, folder: Path, rows: int) -> None:
        app = cluster.metadata(MODEL)
        self._folder, self._rows = folder, rows
        self._url: str = app["endpoints"]["workers"][0]
        self._environment = {**cluster.env, "OPENAI_API_KEY": str(app["api_key"])}
        self._key = str(app["api_key"])
        self._prompts = [
            f"Write a story about a farmer with {number} sheep and {rows - number} cows." for number in range(rows)
        ]
        _write(folder / "chats.jsonl", [{"messages": messages} for messages in map(_chat, self._prompts)])
        _write(folder / "prompts.jsonl", [{"prompt": prompt} for prompt in self._prompts])
        self._body = self._run(min(rows, IN_FLIGHT))[1]

    def matrix(self) -> dict[str, float]:
        """A run as a user starts it."""
        summary, _ = self._run(self._rows)
        return {"tokens": summary["tokens"]["completion"], "seconds": summary["time_s"]["workload"]}

    def bench_serve(self) -> dict[str, float]:
        """The client that comes with vLLM."""
        result, source = self._folder / "result.json", compose_spec([*APP, "tracker=none"]).model.source
        assert source is not None
        arguments = {
            "backend": "openai-chat",
            "base-url": self._url.removesuffix("/v1"),
            "endpoint": "/v1/chat/completions",
            "model": MODEL,
            "tokenizer": resolve(source, say).path,
            "dataset-name": "custom",
            "dataset-path": self._folder / "prompts.jsonl",
            "custom-output-len": TOKENS,
            "num-prompts": self._rows,
            "max-concurrency": IN_FLIGHT,
            "request-rate": "inf",
            "temperature": 0,
            "result-dir": self._folder,
            "result-filename": result.name,
        }
        flags = ["--ignore-eos", "--skip-chat-template", "--disable-shuffle", "--disable-tqdm", "--save-result"]
        self._command("-c", BENCH, *flags, *(f"--{name}={value}" for name, value in arguments.items()))
        found = json.loads(result.read_text())
        if found["completed"] != self._rows:
            raise SystemExit(f"vllm bench serve: {found['completed']} of {self._rows} requests were answered")
        return {"tokens": found["total_output_tokens"], "seconds": found["duration"]}

    def aiohttp(self) -> dict[str, float]:
        """Nothing but the requests."""
        bodies = [{**self._body, "messages": _chat(prompt)} for prompt in self._prompts]
        began = time.monotonic()
        tokens = uvloop.run(_send_all(self._url, self._key, bodies))
        return {"tokens": tokens, "seconds": time.monotonic() - began}

    def _run(self, rows: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """`python run.py`; returns its summary and the body of its first request."""
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            data = f"dataset.path={self._folder / 'chats.jsonl'}"
            self._command(str(ROOT / "run.py"), *RUN, data, f"dataset.limit={rows}", f"run.dir={folder}/run")
            summary: dict[str, Any] = json.loads(Path(folder, "run", "summary.json").read_text())
            first: dict[str, Any] = json.loads(Path(folder, "run", "rows.jsonl").read_text().splitlines()[0])
        if summary["rows"]["ok"] != rows:
            raise SystemExit(f"{rows} rows went in, {summary['rows']} came out")
        return summary, first["request"]

    def _command(self, *arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, env=self._environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{arguments}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def measure(repeat: int, scale: float) -> Runs:
    """Measure all three in turns, and print a table."""
    runs: Runs = {}
    with tempfile.TemporaryDirectory() as folder, Kept() as cluster:
        say("deploying ...")
        cluster.deploy(*APP)
        contest = Contest(cluster, Path(folder), max(int(ROWS * scale), 1))
        contenders = {MATRIX: contest.matrix, PEER: contest.bench_serve, LIMIT: contest.aiohttp}
        for number in range(repeat):
            names = list(contenders)
            for name in names[number % 3 :] + names[: number % 3]:
                figures = _timed(contenders[name])
                say(f"{number + 1}/{repeat} {name}: {figures}")
                runs.setdefault(name, []).append(figures)
    show(f"{max(int(ROWS * scale), 1)} answers of {TOKENS} tokens, {IN_FLIGHT} in flight", COLUMNS, runs)
    for name in (PEER, LIMIT):
        print(f"{MATRIX}, against {name}: {ratio(runs[MATRIX], runs[name], 'tokens_per_s')} the tokens/s")
    return runs


async def _send_all(url: str, key: str, bodies: Sequence[Mapping[str, Any]]) -> int:
    """Send them, so many at a time; returns the tokens of all answers."""
    tokens = 0
    left = iter(bodies)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        headers={"Authorization": f"Bearer {key}"},
        timeout=aiohttp.ClientTimeout(total=600),
    ) as session:

        async def ask_on() -> None:
            nonlocal tokens
            for body in left:
                async with session.post(f"{url}/chat/completions", json=body) as answer:
                    answer.raise_for_status()
                    tokens += (await answer.json())["usage"]["completion_tokens"]

        async with asyncio.TaskGroup() as group:
            for _ in range(IN_FLIGHT):
                group.create_task(ask_on())
    return tokens


def _chat(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _timed(contender: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What a contender says of itself, with what all of it took: by the wall, and CPU with that of its processes."""
    began, used = time.monotonic(), os.times()
    figures = contender()
    command_s, now = time.monotonic() - began, os.times()
    # All but the last field, which is the wall's.
    cpu_s = sum(now[:4]) - sum(used[:4])
    return {
        **figures,
        "tokens_per_s": figures["tokens"] / figures["seconds"],
        "command_s": command_s,
        "cpu_s": cpu_s,
    }
