"""A team's run that is killed: the exact set of rows, and no completed call of a model is paid for twice."""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from matrix.data.parts import part_files
from tests.command import rows, summary
from tests.fake_engine import Body, FakeEngine, Fault, echo
from tests.faults.runs import INPUTS, KEYS, TRIALS, Run, wait_for

IN_FLIGHT = 12
CALLS = 3
TEAM = """
import os, signal
from pathlib import Path
from matrix.agents import Role, Turn

HERE = Path(__file__).parent.parent


class Asker(Role):
    async def act(self, state, tools):
        if state.turns == 0:
            await tools.once("room", self.take, f"{state.index} {state.trial}")
        question = f"{state.index} {state.trial} {state.turns}"
        said = await tools.llm([{"role": "user", "content": question}])
        state.scratch.setdefault("heard", []).append(said.text[0])
        if (HERE / "poison").exists() and (state.index, state.trial, state.turns) == (7, 1, 1):
            os._exit(5)
        if state.turns == 2:
            return Turn(" ".join(state.scratch["heard"]), next="end")
        return said

    async def take(self, name):
        note("take", name)
        return name

    async def release(self, state, held):
        note("release", held["room"])


def note(what, name):
    with open(HERE / "rooms", "a") as file:
        file.write(f"{what} {name}\\n")
"""


def answer(question: str) -> str:
    """What nobody but the server knows."""
    return f"<{question}>"


class TeamRun(Run):
    """A run of that team, killed and started again."""

    def __init__(self, folder: Path, url: str, *settings: str, code: str = TEAM) -> None:
        (folder / "team.py").write_text(code)
        team = (
            "dataset=jsonl",
            "agents=custom",
            f"agents.file={folder}/team.py",
            "agents.order=[Asker]",
            "agents.ends=[Asker]",
        )
        super().__init__(folder, [url], *team, f"workload.max_in_flight={IN_FLIGHT}", *settings)
        self.arguments = tuple(one for one in self.arguments if one != "pipeline=generate")

    def check_rows(self, errors: dict[tuple[int, int], str] | None = None) -> list[dict[str, Any]]:
        """Every row once, with the answers to its own questions, and what it held given back."""
        found = rows(self.dir)
        assert [(row["index"], row["trial"]) for row in found] == KEYS
        for row in found:
            key = row["index"], row["trial"]
            if key in (errors or {}):
                assert (row["status"], row["error"]["type"]) == ("error", (errors or {})[key])
                continue
            assert (row["status"], row["error"], row["termination"]) == ("ok", None, "end")
            said = [answer(f"{key[0]} {key[1]} {turn}") for turn in range(CALLS)]
            assert [entry["text"] for entry in row["history"]] == [*said[:-1], " ".join(said)]
        lines = [text for part in part_files(self.dir / "rows") for text in part.read_bytes().splitlines()]
        assert sorted((row["index"], row["trial"]) for row in map(json.loads, lines)) == KEYS
        assert summary(self.dir)["rows"]["total"] == len(KEYS)
        assert not (self.dir / "steps").exists()
        return found

    def rooms(self) -> Counter[str]:
        """What was taken and given back, and how often."""
        return Counter((self.folder / "rooms").read_text().splitlines())


class Asked(FakeEngine):
    """The server; it knows what it was asked for, and which answers were on their way."""

    def __init__(self, latency_s: float = 0.1, fault: Callable[[Body], Fault | None] = lambda _: None) -> None:
        self.answered: list[str] = []
        super().__init__(self._say, latency_s=latency_s, fail=fault)

    def _say(self, body: Body) -> str:
        self.answered.append(echo(body))
        return answer(echo(body))

    @property
    def asked(self) -> list[str]:
        return [echo(body) for body in self.requests]


ALL = [f"{index} {trial} {turn}" for index in range(INPUTS) for trial in range(TRIALS) for turn in range(CALLS)]


def test_kill_9_at_many_moments_and_resume(tmp_path: Path) -> None:
    """Only a call that was in flight at a kill may be asked for again: what was completed is read back."""
    chance = random.Random(7)
    moments = sorted([0, 0, *chance.sample(range(1, len(ALL)), 12), len(ALL), len(ALL)])
    with Asked.in_thread() as server:
        run = TeamRun(tmp_path, server.url)
        in_flight: Counter[str] = Counter()
        killed = 0
        for moment in moments:
            with run.started() as process:
                wait_for(lambda least=moment: len(set(server.answered)) >= least, process)
                time.sleep(chance.uniform(0, 1.5 if moment == 0 else 0.05))
                process.kill()
                process.wait()
            killed += process.returncode == -signal.SIGKILL
            assert process.returncode in {-signal.SIGKILL, 0}, run.said
            # What was sent just before the kill is read by the server after it.
            time.sleep(0.05)
            wait_for(lambda: not server.in_flight)
            in_flight.update(lost(run, server))
            if process.returncode and chance.random() < 0.5:
                tear(run.dir / "steps", chance)
        assert killed >= 8
        assert run.to_end() == 0, run.said
        asked = Counter(server.asked)
    found = run.check_rows()
    assert set(asked) == set(ALL)
    assert all(asked[what] <= 1 + in_flight[what] for what in ALL)
    assert sum(in_flight.values()) <= killed * IN_FLIGHT
    assert in_flight, "some kills came while requests were in flight"
    calls = [call for row in found for entry in row["history"] for call in entry["calls"]]
    assert any(call["replayed"] for call in calls)
    check_rooms(run)


def lost(run: TeamRun, server: Asked) -> set[str]:
    """What was asked for so far, and is neither in a row nor in a step."""
    kept = {tuple(map(int, key)) for key in run.done()}
    steps = set()
    for part in (run.dir / "steps").glob("part-*"):
        for line in part.read_bytes().splitlines(keepends=True):
            if line.endswith(b"}\n"):
                step = json.loads(line)
                steps.add(
                    f"{step['index']} {step['trial']} {step['at'].partition('.')[0]}" if step["name"] == "llm" else ""
                )
    return {what for what in set(server.asked) if what not in steps and tuple(map(int, what.split()[:2])) not in kept}


def tear(steps: Path, chance: random.Random) -> None:
    """Leave the beginning of a step, as a kill in the middle of a write does."""
    parts = [part for part in steps.glob("part-*") if part.stat().st_size]
    if parts:
        part = max(parts, key=lambda one: one.stat().st_mtime)
        line = part.read_bytes().partition(b"\n")[0]
        with part.open("ab") as file:
            file.write(line[: chance.randrange(len(line))])


def check_rooms(run: TeamRun) -> None:
    """Each was taken once, but for those whose peer died before it was noted, and given back at least once."""
    rooms = run.rooms()
    names = [f"{index} {trial}" for index, trial in KEYS]
    assert {what.partition(" ")[2] for what in rooms} == set(names)
    assert all(rooms[f"release {name}"] >= 1 for name in names)
    assert sum(rooms[f"take {name}"] - 1 for name in names) <= 2
    assert sum(rooms[f"release {name}"] - 1 for name in names) <= 2


def test_a_row_that_kills_its_process_is_an_error_after_two_starts(tmp_path: Path) -> None:
    with Asked.in_thread(latency_s=0.02) as server:
        run = TeamRun(tmp_path, server.url, "workload.max_attempts=2")
        (tmp_path / "poison").touch()
        assert [run.to_end() for _ in range(3)] == [5, 5, 0]
        asked = Counter(server.asked)
    found = run.check_rows({(7, 1): "died"})
    assert "its process died 2 times while the row was running in it" in found[15]["error"]["message"]
    assert (asked["7 1 0"], asked["7 1 1"], asked["7 1 2"]) == (1, 1, 0)
    assert sum(count - 1 for count in asked.values()) <= 2 * IN_FLIGHT
    assert run.rooms()["release 7 1"] == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    """It stops at once; what was completed is not asked for again, and no row is blamed."""
    with Asked.in_thread(latency_s=0.1) as server:
        run = TeamRun(tmp_path, server.url, "workload.max_attempts=1")
        for least in (20, 60):
            with run.started() as process:
                wait_for(lambda least=least: len(server.answered) >= least, process)
                began = time.monotonic()
                process.send_signal(number)
                assert process.wait(180) == 128 + number, run.said
                assert time.monotonic() - began < 5
            assert "Traceback" not in run.said
            assert not (run.dir / "rows.jsonl").exists()
        assert run.to_end() == 0, run.said
        asked = Counter(server.asked)
    run.check_rows()
    assert sum(count - 1 for count in asked.values()) <= 2 * IN_FLIGHT
    check_rooms(run)


def test_code_that_changes_between_starts_is_refused(tmp_path: Path) -> None:
    with Asked.in_thread(latency_s=0.1) as server:
        run = TeamRun(tmp_path, server.url)
        with run.started() as process:
            wait_for(lambda: len(run.done()) >= 5 if run.dir.exists() else False, process)
        before = len(server.asked)
        (tmp_path / "team.py").write_text(TEAM + "\n# Another thought\n")
        assert run.to_end() == 2
        assert "agents.file=" in run.said
        assert "has changed since the run dir began" in run.said
        assert len(server.asked) - before <= IN_FLIGHT
        # Its place doesn't matter, its content does.
        (tmp_path / "team.py").unlink()
        (tmp_path / "moved.py").write_text(TEAM)
        run.arguments = tuple(one.replace("team.py", "moved.py") for one in run.arguments)
        assert run.to_end() == 0, run.said
    run.check_rows()


def test_the_budget_ends_a_run_whose_rows_have_begun_go_on_to_their_end(tmp_path: Path) -> None:
    with Asked.in_thread(latency_s=0.05) as server:
        price = ("model.price.input_per_million=1000", "model.price.output_per_million=1000")
        run = TeamRun(tmp_path, server.url, *price, "workload.budget_usd=0.2")
        assert run.to_end() == 3, run.said
        found = rows(run.dir)
        assert 0 < len(found) < len(KEYS)
        assert all(row["status"] == "ok" and len(row["history"]) == CALLS for row in found)
        assert {what.rpartition(" ")[0] for what in server.asked} == {f"{row['index']} {row['trial']}" for row in found}
        run.arguments = tuple(one for one in run.arguments if "budget_usd" not in one)
        assert run.to_end() == 0, run.said
        assert max(Counter(server.asked).values()) == 1
    run.check_rows()


def test_what_fails_for_good_is_asked_for_again_if_errors_are_to_be_retried(tmp_path: Path) -> None:
    broken = [True]

    def fault(body: Body) -> Fault | None:
        return Fault.http(400, "no") if broken[0] and echo(body) in {"3 0 2", "9 1 1"} else None

    with Asked.in_thread(latency_s=0.0, fault=fault) as server:
        run = TeamRun(tmp_path, server.url)
        assert run.to_end() == 0, run.said
        run.check_rows({(3, 0): "http_400", (9, 1): "http_400"})
        broken[0] = False
        assert run.to_end() == 0, run.said
        assert "nothing is asked for again" in run.said
        run.arguments += ("workload.retry_errors=true",)
        assert run.to_end() == 0, run.said
    assert all(row["status"] == "ok" for row in rows(run.dir))


@pytest.fixture(autouse=True)
def temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A run of a team without Ray leaves none."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    yield
    assert list(folder.iterdir()) == []
