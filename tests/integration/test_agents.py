"""Peers and processes of roles on a real Ray cluster: what is killed, stopped, or joins, costs no row."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.agents.small_teams import in_process, team_file
from tests.command import ROOT
from tests.fake_engine import FakeEngine
from tests.integration.agent_runs import ASKS, ORDER, TeamRun, asked_twice, check_answers, kill, wait_for
from tests.integration.family import Family
from tests.integration.kept import Cluster

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

PEERS = ("workload.drivers=3", "workload.max_in_flight=30", "workload.max_attempts=2")


@pytest.fixture(autouse=True)
def family() -> Iterator[Family]:
    """Whatever a test does, nothing of what it started is left."""
    with Family() as family:
        yield family
    assert len(family) > 5
    assert family.left(within_s=20) == []


def test_a_peer_that_is_killed_and_rows_that_kill_theirs(tmp_path: Path) -> None:
    """No row is lost or doubled, no completed step is paid for again, and the guilty rows are errors."""
    roles = ASKS.replace(
        "async def third(state, tools): ",
        """
async def third(state, tools):
    if state.index in (100, 200):
        os._exit(1)
    """,
    )
    with FakeEngine.in_thread(latency_s=0.1) as engine:
        run = TeamRun(tmp_path, engine.url, roles, 800, *ORDER, *PEERS)
        with run.started() as process:
            run.wait_for_rows(process, 0, 1, 2, each=10)
            kill(run.pid_of(1))
            assert process.wait(360) == 0
    found = run.check({100: "died", 200: "died"})
    check_answers(found)
    for index in (100, 200):
        assert found[index]["error"]["message"] == "its process died 2 times while the row was running in it"
    assert "driver-1 died" in run.said
    assert "died while row 100, trial 0 was running" in run.said
    # What was in flight at one of the five deaths.
    assert len(asked_twice(engine)) <= 5 * 10
    assert not any(what.startswith(("100 ", "200 ")) for what in asked_twice(engine))
    replayed = sum(call["replayed"] for row in found for entry in row["history"] for call in entry["calls"])
    assert replayed > 0


JUDGED = """
async def writer(state, tools):
    text = (await asked(state, tools, "write")).text[0]
    return text + " " + "x" * 50_000

class judge(Role):
    def __init__(self, *, name: str):
        self.name = name

    async def act(self, state, tools):
        text = state.last.text
        assert len(text) > 50_000 and text.startswith(f"{state.index} write")
        if state.index == 150:
            os._exit(1)
        if state.index == 151:
            raise ValueError("no")
        if state.index == 152:
            await asyncio.sleep(60)
        if state.index == 153:
            time.sleep(1.5)
        state.metrics["length"] = len(text)
        state.scratch["judged"] = f"{self.name} {tools.prompt()}"
        with open(FOLDER / f"turns-{os.getpid()}", "a") as file:
            file.write(f"{state.index}\\n")
        await asyncio.sleep(0.05)
        return Turn("judged", data={"pid": os.getpid()})

class together(Role):
    async def act(self, state, tools):
        raise NotImplementedError

    async def act_batch(self, states):
        if any(state.index == 160 for state in states):
            raise ValueError("one of them")
        await asyncio.sleep(0.02)
        return [Turn(f"{state.index} of {len(states)}") if state.index != 161 else 5 for state in states]

async def closer(state, tools):
    return (await asked(state, tools, state.scratch["judged"])).text[0]
"""


def test_processes_of_roles_that_die_hang_and_fail(tmp_path: Path) -> None:
    """Turns go in batches; a turn that kills, blocks or fails is an error, and all others are done once."""
    team = (
        "agents.order=[writer,judge,together,closer]", "agents.repeat=false", "workload.max_attempts=2",
        "+agents.roles.judge={actor: true, replicas: 2, timeout_s: 1, options: {name: me}, prompt: 'row {{ n }}'}",
        "+agents.roles.together={actor: true, batch: 16}", "workload.drivers=2", "workload.max_in_flight=100",
    )  # fmt: skip
    with FakeEngine.in_thread(latency_s=0.01) as engine:
        run = TeamRun(tmp_path, engine.url, JUDGED, 300, *team)
        with run.started() as process:
            wait_for(lambda: len(list(tmp_path.glob("turns-*"))) >= 2, process)
            kill(int(next(tmp_path.glob("turns-*")).name.partition("-")[2]))
            assert process.wait(360) == 0, run.said
    found = run.check(
        {150: "died", 151: "ValueError", 152: "timeout", 153: "hangs", 160: "ValueError", 161: "TypeError"}
    )
    assert found[150]["error"]["message"] == "judge: its process died 2 times of this turn"
    assert "in act" in found[151]["error"]["traceback"]
    assert found[152]["error"]["message"] == "judge took more than 1 s for a turn (agents.roles.judge.timeout_s)"
    fine = [row for row in found if row["error"] is None]
    assert all(row["history"][3]["text"] == f"{row['index']} me row {row['index']}" for row in fine)
    assert all(row["metrics"] == {"length": len(row["history"][0]["text"])} for row in fine)
    assert len(list(tmp_path.glob("turns-*"))) >= 3, "both were at work, and those that were killed came again"
    sizes = [int(row["history"][2]["text"].rpartition(" ")[2]) for row in fine]
    assert 4 < max(sizes) <= 16
    assert all(row["history"][2]["text"].startswith(f"{row['index']} of ") for row in fine)
    assert asked_twice(engine) == []


def test_a_role_that_cannot_be_started_ends_the_run(tmp_path: Path) -> None:
    roles = """
    class judge(Role):
        def __init__(self):
            raise RuntimeError("no GPU in here")

        async def act(self, state, tools):
            return "never"
    """
    team = ("agents.order=[judge]", "agents.repeat=false", "+agents.roles.judge={actor: true}")
    with FakeEngine.in_thread() as engine:
        run = TeamRun(tmp_path, engine.url, roles, 5, *team, "workload.drivers=2")
        assert run.to_end() == 1
    why = "agents.roles.judge.use=judge: can't be made: RuntimeError: no GPU in here, line"
    assert f"error: judge: a process of it can't be started: {why}" in run.said
    assert not (run.dir / "rows.jsonl").exists()
    assert "Traceback" not in run.said


UNEVEN = """
async def first(state, tools):
    await a_while()
    return await asked(state, tools, "a")

async def second(state, tools):
    await a_while()
    return await asked(state, tools, "b")

async def third(state, tools):
    await a_while()
    return await asked(state, tools, "c")

async def a_while():
    await asyncio.sleep(__import__("random").random())
"""
SLOW = """
async def first(state, tools):
    await slow()
    return await asked(state, tools, "a")

async def second(state, tools):
    await slow()
    return await asked(state, tools, "b")

async def third(state, tools):
    await slow()
    return await asked(state, tools, "c")

async def slow():
    pid = (FOLDER / "slow").read_text() if (FOLDER / "slow").exists() else ""
    await asyncio.sleep(20 if pid == str(os.getpid()) else 0.1)
"""


def test_rows_of_a_slow_peer_go_on_in_free_ones(tmp_path: Path) -> None:
    with FakeEngine.in_thread(latency_s=0.02) as engine:
        run = TeamRun(tmp_path, engine.url, SLOW, 900, *ORDER, "workload.drivers=3", "workload.max_in_flight=60")
        with run.started() as process:
            run.wait_for_rows(process, 0, 1, 2)
            (tmp_path / "slow").write_text(str(run.pid_of(1)))
            assert process.wait(360) == 0
    check_answers(run.check())
    assert asked_twice(engine) == []
    handed = [row for row in map(json.loads, (run.dir / "rows.jsonl").open()) if row["took_s"] > 19]
    assert len(handed) >= 10, "20 were in it"
    # Three slow turns take 60 s; the others are free much sooner.
    assert sum(row["took_s"] > 59 for row in handed) < 5, "after one or two slow turns they are elsewhere"


def test_a_peer_that_stands_still_for_a_while_keeps_nobody_up(tmp_path: Path) -> None:
    with FakeEngine.in_thread(latency_s=0.1) as engine:
        run = TeamRun(tmp_path, engine.url, ASKS, 600, *ORDER, "workload.drivers=3", "workload.max_in_flight=30")
        with run.started() as process:
            run.wait_for_rows(process, 0, 1, 2)
            stopped = run.pid_of(2)
            kill(stopped, signal.SIGSTOP)
            # The one that stands still has a tenth of the rows at most.
            wait_for(lambda: sum(map(run.share, range(3))) >= 540, process)
            assert process.poll() is None
            kill(stopped, signal.SIGCONT)
            assert process.wait(360) == 0
    check_answers(run.check())
    assert asked_twice(engine) == []


def test_more_peers_than_rows_which_have_one_name(tmp_path: Path) -> None:
    with FakeEngine.in_thread() as engine:
        run = TeamRun(tmp_path, engine.url, ASKS, 2, *ORDER, "workload.drivers=3", "dataset.id_key=same")
        run.data.write_text("".join(f'{{"n": {number}, "same": "x"}}\n' for number in range(2)))
        assert run.to_end() == 0, run.said
    found = run.check()
    check_answers(found)
    assert {row["id"] for row in found} == {"x"}


@contextmanager
def another_node(cluster: Cluster) -> Iterator[subprocess.Popen[str]]:
    """A node with room for two peers."""
    state = cluster.logs.parent
    address = json.loads((state / "cluster.json").read_text())["address"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.another_node", address, "2", "0", '{"spot": 2}'],
        env={**cluster.env, "RAY_AUTH_TOKEN_PATH": str(state / "token")},
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "joined\n"
        yield process
    finally:
        process.communicate(timeout=360)


def test_peers_join_with_their_node_and_leave_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATRIX_DIR", str(tmp_path / "matrix"))
    pinned = ("cluster=attach", "workload.drivers=3", "workload.resources.spot=1", "workload.max_in_flight=30")
    with FakeEngine.in_thread(latency_s=0.05) as engine, Cluster.until_the_end(tmp_path / "matrix") as cluster:
        cluster.start(cpus=2)
        run = TeamRun(tmp_path, engine.url, ASKS, 400, *ORDER, *pinned)
        with run.started() as process:
            wait_for(lambda: "Waiting for driver-0" in (tmp_path / "stderr").read_text(), process)
            assert engine.requests == []
            with another_node(cluster):
                wait_for(lambda: sum(map(run.share, range(3))) >= 50, process)
            done = sum(map(run.share, range(3)))
            time.sleep(1)
            assert sum(map(run.share, range(3))) == done < 400
            with another_node(cluster):
                assert process.wait(360) == 0
    check_answers(run.check())
    assert sum(run.share(number) > 0 for number in range(3)) >= 2
    # In flight when the node left.
    assert len(asked_twice(engine)) <= 20


def test_a_run_of_several_peers_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    """Also with another number of peers, and with none but the command itself."""
    with FakeEngine.in_thread(latency_s=0.2) as engine:
        # At any time some rows are in the middle.
        run = TeamRun(tmp_path, engine.url, UNEVEN, 150, *ORDER, "workload.max_in_flight=30")
        for peers, least in ((3, 30), (2, 70)):
            with run.started(f"workload.drivers={peers}") as process:
                wait_for(lambda least=least: sum(map(run.share, range(3))) >= least, process)
            # Ray's own end of it: peers write until they have noticed.
            time.sleep(3)
        assert run.to_end() == 0, run.said
    found = run.check()
    check_answers(found)
    assert len(asked_twice(engine)) <= 2 * 30
    assert any(call["replayed"] for row in found for entry in row["history"] for call in entry["calls"])


REFERENCES = """
import asyncio, gc, json, sys, time
from pathlib import Path
from matrix.agents.actors import LARGE_CHARS, RoleProcess, start_roles, end_roles, to_message
from matrix.agents.state import State
from matrix.cluster.ray import connect
from matrix.data.rows import Entry
from tests.agents.small_teams import opened, team_spec, work, written

folder = Path(sys.argv[1])
spec = team_spec(folder / "team.py", {"max_in_flight": 20}, order=["writer", "judge"], ends=["judge"],
    roles={"judge": {"actor": True}})
cluster = connect(spec.cluster)
import ray
from ray._private.internal_api import memory_summary
try:
    text = "x" * (LARGE_CHARS + 1)
    large = {}
    state = State("a", 0, 0, 0, {"short": "y", "long": text, "list": [text]}, [Entry("w", "short"), Entry("w", text)])
    first, again = to_message(state, large), to_message(state, large)
    actors = start_roles(spec, folder)

    async def main():
        from matrix.data.journal import Journal
        from matrix.run.session import Served
        from matrix.run.workload import Workload
        with Journal(folder / "rows", "driver") as journal:
            served = {name: Served(["http://127.0.0.1:9/v1"], None, 0.0, 0.0) for name in spec.asked_apps}
            async with Workload(spec, served, journal.append, run_dir=folder, writer="driver", actors=actors) as workload:
                await workload.pipeline.run(iter(work(*({"long": text} for _ in range(40)))))

    del state
    kept = dict(texts={number: ray.get(one) == text for number, one in first.texts.items()},
        task={name: ray.get(one) == text for name, one in first.task.items()},
        once=first.texts[1] == again.texts[1], columns=first.state.task, history=[e.text for e in first.state.history])
    del first, again, large
    asyncio.run(main())
    rows = written(folder)
    gc.collect()
    end_roles(actors)
    for _ in range(50):
        objects = [line for line in memory_summary(ray.get_runtime_context().gcs_address, stats_only=True).splitlines() if "Plasma memory usage" in line][0]
        if ", 0 objects" in objects:
            break
        time.sleep(0.1)
    print(json.dumps({**kept, "objects": objects, "ok": sum(row.status == "ok" for row in rows)}))
finally:
    cluster.stop()
"""


def test_large_texts_travel_once_and_are_gone_with_their_row(tmp_path: Path) -> None:
    team_file(
        tmp_path,
        """
        async def writer(state, tools):
            return "w" * 20_000 + str(state.index)

        async def judge(state, tools):
            assert len(state.task["long"]) == 16_385
            assert state.last.text == "w" * 20_000 + str(state.index)
            return Turn("x", end="fine") if state.turns == 3 else "x"
        """,
    )
    done = in_process(REFERENCES, str(tmp_path), timeout_s=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    text = "x" * 16_385
    assert (found["texts"], found["task"], found["once"]) == ({"1": True}, {"long": True}, True)
    assert found["columns"] == {"short": "y", "list": [text]}
    assert found["history"] == ["short", ""]
    assert found["ok"] == 40
    assert ", 0 objects" in found["objects"], found["objects"]
