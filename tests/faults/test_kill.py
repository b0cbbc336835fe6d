"""A run that is killed, stopped, or whose server dies: the exact set of rows, and nothing is paid for twice."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.fake_engine import Fault
from tests.faults.runs import KEYS, Bill, Run, wait_for
from tests.faults.server import Server, ServerProcess

IN_FLIGHT = 8


def test_kill_9_at_20_moments_and_resume(tmp_path: Path) -> None:
    """Some while it starts, most while rows are asked for, some when the last one is answered."""
    chance = random.Random(5)
    moments = sorted([0, 0, 0, *chance.sample(range(1, len(KEYS)), 14), len(KEYS), len(KEYS), len(KEYS)])
    with Server.in_thread(latency_s=0.15) as server:
        run = Run(tmp_path, [server.url], f"workload.concurrency={IN_FLIGHT}")
        bill = Bill(run, server)
        killed = 0
        for moment in moments:
            starting = moment == 0
            with run.started() as process:
                wait_for(lambda least=moment: len(set(server.answered)) >= least, process)
                time.sleep(chance.uniform(0, 1.5 if starting else 0.05))
            killed += process.returncode == -signal.SIGKILL
            # The last ones may find nothing left to do, and be through with it before the kill.
            assert process.returncode in {-signal.SIGKILL, 0}, run.said
            assert len(bill.ended()) <= IN_FLIGHT
            part = run.dir / "rows" / "part-driver.jsonl"
            if process.returncode and part.exists() and chance.random() < 0.4:
                _tear(part, chance)
        assert killed >= 10, "how many get through before their kill depends on the machine"
        assert run.to_end() == 0, run.said
        bill.ended()
        run.check()
        bill.check()
        assert bill.lost, "some kills came while requests were in flight"


def _tear(part: Path, chance: random.Random) -> None:
    """Leave the beginning of a row, as a kill in the middle of a write does; that is too rare to be waited for."""
    line = part.read_bytes().partition(b"\n")[0]
    with part.open("ab") as file:
        file.write(line[: chance.randrange(len(line))] if line else b'{"id"')


def test_a_server_that_is_killed_and_comes_back(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "ledger") as server:
        run = Run(tmp_path, [server.url], f"workload.concurrency={IN_FLIGHT}")
        with run.started() as process:
            for answers in (25, 75):
                wait_for(lambda least=answers: len(server.answered()) >= least, process)
                server.kill()
                time.sleep(0.3)
                assert process.poll() is None, "it waits for the server"
                server.start()
            assert process.wait(180) == 0
        paid = Counter(server.answered())
    found = run.check()
    assert max(row["response"]["attempts"] for row in found) > 1
    assert set(paid) == set(KEYS)
    assert paid.total() - len(KEYS) <= 2 * IN_FLIGHT, "only answers that were on their way at a kill are paid for again"


SITUATIONS = {
    "answers": None,
    "hangs": Fault.hang(),
    "refuses": Fault.http(429, headers={"Retry-After": "50"}),
}


@pytest.mark.parametrize(
    ("number", "situation"),
    [
        (signal.SIGINT, "answers"),
        (signal.SIGTERM, "answers"),
        (signal.SIGINT, "hangs"),
        (signal.SIGTERM, "refuses"),
    ],
)
def test_a_signal_while_the_server(tmp_path: Path, number: signal.Signals, situation: str) -> None:
    fault = SITUATIONS[situation]
    with Server.in_thread(lambda _: fault if len(server.answered) >= 40 else None, latency_s=0.05) as server:
        run = Run(tmp_path, [server.url], f"workload.concurrency={IN_FLIGHT}")
        bill = Bill(run, server)
        with run.started() as process:
            wait_for(lambda: len(server.answered) >= 40, process)
            wait_for(lambda: fault is None or len(server.asked) >= 40 + IN_FLIGHT, process)
            begun = time.monotonic()
            process.send_signal(number)
            assert process.wait(180) == 128 + number, run.said
            assert time.monotonic() - begun < 5
        assert "the rows so far are kept" in run.said
        assert "Resume with:" in run.said
        assert "Traceback" not in run.said
        assert not (run.dir / "rows.jsonl").exists()
        assert len(bill.ended()) <= IN_FLIGHT
        assert len(run.done()) >= 40 - IN_FLIGHT
        fault = None
        assert run.to_end() == 0, run.said
        bill.ended()
        run.check()
        bill.check()
