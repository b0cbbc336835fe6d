"""What running a program in the sandbox costs: `python benchmarks/sandbox/executions.py [--repeat 3] [--quick]`.

Two programs, two at a time on two cores: `print(1+1)`, and HumanEval's solutions with their tests, one after another
(`--humaneval FILE`; without it 12 problems that are part of matrix). Contestants, one after another in each round, each
round beginning with another one:

- python: `python -c` as a subprocess, no isolation (the limit that is asked for); it ends with its test;
- fair-matrix: 0.2.6's own `SandboxRunner`, in its own environment, in as many threads (`--fair-threads`, the best of
  several: it sleeps 0.1 s between two looks whether a program is over, so that more threads than cores help it);
- cold: a worker of ours that is started for one program;
- warm: our workers, which wait; HumanEval also `judged`: the test in another sandbox than the solution;
- served: the same over HTTP, by `python -m matrix.serving`, 32 in flight: what a client sees of an app's replica.

Rates and latencies (p50, p99) are of whole executions, the queue of those that are in flight included. CPU is what the
whole machine was busy with, for each execution.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import tables  # noqa: E402
from processes import busy_s, fair_matrix_python, say  # noqa: E402

from matrix.client.endpoints import Endpoints  # noqa: E402
from matrix.client.http import ModelClient  # noqa: E402
from matrix.sandbox.execution import Execution  # noqa: E402
from matrix.sandbox.pool import Sandbox  # noqa: E402
from matrix.spec.services import SandboxEngine  # noqa: E402

AT_A_TIME = 2
SERVED_IN_FLIGHT = 32
COLUMNS = {
    "per_s": ("executions/s", ",.1f"),
    "p50_ms": ("p50 ms", ",.1f"),
    "p99_ms": ("p99 ms", ",.1f"),
    "cpu_ms": ("CPU ms each", ",.1f"),
    "number": ("executions", ",.0f"),
}
ENGINE = SandboxEngine(kind="sandbox", workers=AT_A_TIME)

Program = dict[str, str]
Figures = dict[str, float]


def figures(latencies_s: Sequence[float], seconds: float, busy: float) -> Figures:
    """Of executions that took so long each, and all together."""
    ordered = sorted(latencies_s)
    return {
        "per_s": len(ordered) / seconds,
        "p50_ms": statistics.median(ordered) * 1e3,
        "p99_ms": ordered[min(len(ordered) * 99 // 100, len(ordered) - 1)] * 1e3,
        "cpu_ms": busy / len(ordered) * 1e3,
        "number": len(ordered),
    }


async def in_flight(run: Callable[[Program], Awaitable[None]], programs: list[Program], at_a_time: int) -> Figures:
    """Run all, so many at a time."""
    todo, latencies = iter(programs), []

    async def worker() -> None:
        for program in todo:
            began = time.perf_counter()
            await run(program)
            latencies.append(time.perf_counter() - began)

    began, busy = time.perf_counter(), busy_s()
    await asyncio.gather(*(worker() for _ in range(at_a_time)))
    return figures(latencies, time.perf_counter() - began, busy_s() - busy)


def script(program: Program) -> str:
    """The program with its test, as one file."""
    return program["code"] + program.get("check", "")


def plain(programs: list[Program]) -> Figures:
    """Subprocesses of Python."""

    async def run(program: Program) -> None:
        command = [sys.executable, "-c", script(program)]
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        await process.communicate()
        check(process.returncode == 0, program)

    return asyncio.run(in_flight(run, programs, AT_A_TIME))


def fair(programs: list[Program], threads: int) -> Figures:
    """fair-matrix, in its own environment."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump([script(program) for program in programs], file)
        file.flush()
        # Of the system: its sandbox shows /usr and the interpreter's file, but not where another one's library is.
        environment = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
        command = [fair_matrix_python(), str(HERE / "fair_runner.py"), file.name, str(threads)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment, text=True)
    told = json.loads(done.stdout.splitlines()[-1])
    return figures(told["latencies_s"], told["seconds"], told["busy_s"])


async def warm(programs: list[Program], judged: bool) -> Figures:
    """Our workers."""
    sandbox = Sandbox(ENGINE)
    await sandbox.start()

    async def run(program: Program) -> None:
        done = await sandbox.execute(execution(program, judged=judged))
        check(done.status == "ok" and done.passed is not False, program)

    try:
        return await in_flight(run, programs, AT_A_TIME)
    finally:
        await sandbox.close()


async def cold(programs: list[Program]) -> Figures:
    """A worker for each program."""

    async def run(program: Program) -> None:
        sandbox = Sandbox(ENGINE.model_copy(update={"workers": 1}))
        await sandbox.start()
        done = await sandbox.execute(execution(program, judged=False))
        check(done.status == "ok", program)
        await sandbox.close()

    return await in_flight(run, programs, AT_A_TIME)


async def served(programs: list[Program], judged: bool) -> Figures:
    """Over HTTP."""
    key = secrets.token_hex(16)
    spec = {"engine": ENGINE.model_dump(mode="json"), "model": {"name": "code"}}
    environment = {**os.environ, "MATRIX_SERVING": json.dumps(spec), "MATRIX_API_KEY": key, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "matrix.serving", "--port", "0"]
    server = subprocess.Popen(  # noqa: ASYNC220 - nothing else goes on yet
        command, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    url = server.stdout.readline().strip()
    try:
        endpoints = Endpoints([url])
        async with ModelClient(endpoints, api_key=key, timeout_s=120, max_attempts=1) as client:

            async def run(program: Program) -> None:
                body = execution(program, judged=judged).model_dump(exclude_defaults=True)
                answer = await client.execute(body)
                check(answer.finish_reason == ["ok"], program)

            return await in_flight(run, programs, SERVED_IN_FLIGHT)
    finally:
        server.terminate()
        server.wait()


def execution(program: Program, *, judged: bool) -> Execution:
    """The same for us."""
    if not judged:
        return Execution(code=script(program))
    return Execution(
        code=program["code"], test=program["test"], entry_point=program["entry"], prelude=program["prompt"]
    )


def check(held: bool, program: Program) -> None:
    """Who doesn't run it isn't measured."""
    if not held:
        raise SystemExit(f"this did not run as it should:\n{script(program)}")


def humaneval(file: Path, number: int) -> list[Program]:
    """Solutions and tests, over and over."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    found = [
        {
            "prompt": f"{row['prompt']}    pass\n",
            "code": row["prompt"] + row["canonical_solution"],
            "test": row["test"],
            "entry": row["entry_point"],
            "check": f"\n{row['test']}\ncheck({row['entry_point']})\n",
        }
        for row in rows
    ]
    return [found[place % len(found)] for place in range(number)]


def main() -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="rounds")
    parser.add_argument("--quick", action="store_true", help="a tenth of the executions")
    parser.add_argument("--fair-threads", default="2,16", help="how many threads fair-matrix gets; the best counts")
    parser.add_argument("--humaneval", type=Path, default=ROOT / "matrix/data/samples/humaneval.jsonl")
    options = parser.parse_args()
    threads = [int(one) for one in options.fair_threads.split(",")]
    scale = 10 if options.quick else 1

    def count(number: int) -> int:
        return max(20, number // scale)

    for title, make, can_be_judged in (
        ("print(1+1)", lambda number: [{"code": "print(1+1)"}] * number, False),
        ("HumanEval, solution and test", lambda number: humaneval(options.humaneval, number), True),
    ):
        contestants: dict[str, Callable[[], Figures]] = {
            "python": lambda make=make: plain(make(count(600))),
            **{
                f"fair-matrix, {number} threads": lambda make=make, number=number: fair(make(count(200)), number)
                for number in threads
            },
            "cold": lambda make=make: asyncio.run(cold(make(count(100)))),
            "warm": lambda make=make: asyncio.run(warm(make(count(1_000)), judged=False)),
            "served": lambda make=make: asyncio.run(served(make(count(1_000)), judged=False)),
        }
        if can_be_judged:
            contestants["warm, judged"] = lambda make=make: asyncio.run(warm(make(count(600)), judged=True))
            contestants["served, judged"] = lambda make=make: asyncio.run(served(make(count(600)), judged=True))
        runs: dict[str, list[Any]] = {name: [] for name in contestants}
        for turn in range(options.repeat):
            names = list(contestants)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                say(f"{title}, round {turn + 1}: {name}")
                runs[name].append(contestants[name]())
        tables.show(title, COLUMNS, runs)
        best = max((name for name in runs if name.startswith("fair")), key=lambda name: runs[name][0]["per_s"])
        for ours in ("warm", "warm, judged"):
            for other in (best, "python"):
                if ours in runs:
                    print(f"{ours} / {other}: {tables.ratio(runs[ours], runs[other], 'per_s')}")


if __name__ == "__main__":
    main()
