"""The contestants of `overhead.py` that are a loop of their own: `python contestants.py NAME ROWS --in-flight N ...`.

- `asyncio`: drivers without any framework, which is the limit: a row is a list of turns and goes round the roles. What
  comes of it is thrown away, or with `--write FOLDER` written as a line of JSON;
- `langgraph`: the same functions as nodes of a compiled StateGraph, asked by `abatch_as_completed`, whose
  `max_concurrency` is LangGraph's own limit of what is in flight;
- `langgraph-sqlite`: with its checkpointer for SQLite, which keeps each turn as matrix's journal does.

The rows are shared by PROCESSES processes, each of which reads its own part of the file within what is measured. All
have uvloop, and a garbage collector that looks as seldom as matrix lets it.
`--pause` lets other rows run in each turn (`asyncio.sleep(0)`): without it a row of plain asyncio never waits, and so
has no other one in flight beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import operator
import os
import resource
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, TypedDict

import coral
import orjson
import uvloop

Said = dict[str, Any]
Role = Callable[[dict[str, Any], int], Awaitable[Said]]
Emit = Callable[[bytes], object]


async def teacher(task: dict[str, Any], turn: int) -> Said:
    """Say something."""
    return {"agent": "teacher", "text": coral.speak(task["question_id"], turn), "timestamp": time.time()}


async def student(task: dict[str, Any], turn: int) -> Said:
    """Say something else."""
    return {"agent": "student", "text": coral.speak(task["question_id"], turn), "timestamp": time.time()}


async def extractor(task: dict[str, Any], turn: int) -> Said:
    """Say which option the speaker meant."""
    return {"agent": "answer_extractor", "text": coral.extract(task["question_id"], turn), "timestamp": time.time()}


async def matcher(task: dict[str, Any], turn: int) -> Said:
    """Say whether both agree."""
    agree = coral.agree(task, turn)
    data = {"agreement": agree, "rated_turns": turn // 3 + 1}
    return {"agent": "answer_matcher", "text": "", "data": data, "timestamp": time.time()}


ROLES: dict[str, Role] = {
    "teacher": teacher,
    "student": student,
    "answer_extractor": extractor,
    "answer_matcher": matcher,
}


def pausing(role: Role) -> Role:
    """The role with a turn of the event loop before it."""

    async def act(task: dict[str, Any], turn: int) -> Said:
        await asyncio.sleep(0)
        return await role(task, turn)

    return act


@dataclass
class Job:
    """What a process does.

    Attributes:
        rows: Its rows.
        in_flight: How many of them at a time.
        emit: Takes a row that is over; None: it is thrown away.
        roles: By name.
        folder: For files of its own.
        hops: Turns so far.
        done: Rows so far.
    """

    rows: Iterator[dict[str, Any]]
    in_flight: int
    emit: Emit | None
    roles: dict[str, Role]
    folder: Path | None
    hops: int = 0
    done: int = 0

    def over(self, task: dict[str, Any], history: list[Said]) -> None:
        """A row is over."""
        self.hops += len(history)
        self.done += 1
        if self.emit is not None:
            line = {"id": task["question_id"], "status": "ok", "task": task, "history": history}
            self.emit(orjson.dumps(line) + b"\n")


async def plain(job: Job) -> None:
    """Drivers without a framework."""
    order = [job.roles[name] for name in coral.ORDER]

    async def drive() -> None:
        for task in job.rows:
            history: list[Said] = []
            while len(history) < coral.MOST_TURNS:
                turn = await order[len(history) % 6](task, len(history))
                history.append(turn)
                if "data" in turn and turn["data"]["agreement"]:
                    break
            job.over(task, history)

    await asyncio.gather(*(drive() for _ in range(job.in_flight)))


class GraphState(TypedDict):
    """What LangGraph hands from node to node."""

    task: dict[str, Any]
    history: Annotated[list[Said], operator.add]


async def langgraph(job: Job, *, durable: bool) -> None:
    """A compiled StateGraph."""
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
    from langgraph.graph import END, START, StateGraph

    def node(name: str) -> Callable[[GraphState], Awaitable[dict[str, list[Said]]]]:
        role = job.roles[name]

        async def act(state: GraphState) -> dict[str, list[Said]]:
            return {"history": [await role(state["task"], len(state["history"]))]}

        return act

    def route(state: GraphState) -> str:
        turns = len(state["history"])
        if state["history"][-1]["data"]["agreement"] or turns >= coral.MOST_TURNS:
            return END
        return coral.ORDER[turns % 6]

    graph = StateGraph(GraphState)
    for name in ROLES:
        graph.add_node(name, node(name))
    graph.add_edge(START, "teacher")
    for speaker in ("teacher", "student"):
        graph.add_edge(speaker, "answer_extractor")
    graph.add_edge("answer_extractor", "answer_matcher")
    graph.add_conditional_edges("answer_matcher", route, ["teacher", "student", END])
    async with AsyncExitStack() as opened:
        saver = None
        if durable:
            assert job.folder is not None
            path = str(job.folder / f"checkpoints-{os.getpid()}.sqlite")
            saver = await opened.enter_async_context(AsyncSqliteSaver.from_conn_string(path))
        compiled = graph.compile(checkpointer=saver)
        tasks = list(job.rows)
        configs: Any = [
            {
                "max_concurrency": job.in_flight,
                "recursion_limit": coral.MOST_TURNS + 5,
                "configurable": {"thread_id": str(task["question_id"])},
            }
            for task in tasks
        ]
        states: Any = [{"task": task, "history": []} for task in tasks]
        async for _, state in compiled.abatch_as_completed(states, configs):
            job.over(state["task"], state["history"])


CONTESTANTS: dict[str, Callable[[Job], Awaitable[None]]] = {
    "asyncio": plain,
    "langgraph": partial(langgraph, durable=False),
    "langgraph-sqlite": partial(langgraph, durable=True),
}


def share(path: Path, number: int, processes: int) -> Iterator[dict[str, Any]]:
    """The rows of one process: every PROCESSES-th."""
    with path.open("rb") as lines:
        yield from map(orjson.loads, islice(lines, number, None, processes))


def work(options: argparse.Namespace) -> None:
    """Do one process's part when told to begin; print what it took."""
    roles = {name: pausing(role) for name, role in ROLES.items()} if options.pause else ROLES
    out = None if options.write is None else (options.write / f"part-{options.number}.jsonl").open("wb")
    rows = share(options.rows, options.number, options.processes)
    in_flight = max(1, options.in_flight // options.processes)
    job = Job(rows, in_flight, None if out is None else out.write, roles, options.write)
    if options.contestant != "asyncio":
        # What it imports is no part of a row.
        import langgraph.checkpoint.sqlite.aio
        import langgraph.graph  # noqa: F401
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    print("ready", flush=True)
    sys.stdin.readline()
    began, cpu_s = time.time(), time.process_time()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(CONTESTANTS[options.contestant](job))  # type: ignore[arg-type]
    if out is not None:
        out.flush()
        os.fsync(out.fileno())
    figures = {
        "began": began,
        "ended": time.time(),
        "cpu_s": time.process_time() - cpu_s,
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "rows": job.done,
        "hops": job.hops,
    }
    print(json.dumps(figures), flush=True)


def main() -> None:
    """Start the processes, let them begin together, and print what all of them took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contestant", choices=CONTESTANTS)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--in-flight", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--pause", action="store_true")
    parser.add_argument("--number", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.number is not None:
        work(options)
        return
    workers = [
        subprocess.Popen(
            [sys.executable, *sys.argv, "--number", str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(options.processes)
    ]
    for worker in workers:
        assert worker.stdout is not None
        if worker.stdout.readline() != "ready\n":
            raise SystemExit(f"process {worker.pid} failed")
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    figures = [json.loads(worker.communicate()[0]) for worker in workers]
    total = {key: sum(one[key] for one in figures) for key in ("cpu_s", "rss_mb", "rows", "hops")}
    total |= {"began": min(one["began"] for one in figures), "ended": max(one["ended"] for one in figures)}
    print(json.dumps(total), flush=True)


if __name__ == "__main__":
    main()
