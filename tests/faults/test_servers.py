"""Servers that fail in one way or another: every row is answered, once; or refused, once."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path

import pytest

from tests.command import summary
from tests.fake_engine import Fault
from tests.faults.runs import KEYS, Run
from tests.faults.server import Key, Server, answer

IN_FLIGHT = 8

BROKEN = {
    "hangs": Fault.hang(),
    "says-500": Fault.http(500),
    "resets": Fault.reset(),
    "says-garbage": Fault.garbage(),
    "breaks-off": Fault.half(),
}


@pytest.mark.parametrize("way", BROKEN)
def test_one_of_three_replicas(tmp_path: Path, way: str) -> None:
    with (
        Server.in_thread(latency_s=0.02) as one,
        Server.in_thread(lambda _: BROKEN[way]) as broken,
        Server.in_thread(latency_s=0.02) as other,
    ):
        run = Run(tmp_path, [one.url, broken.url, other.url], "workload.try_timeout_s=1")
        assert run.to_end() == 0, run.said
    found = run.check()
    assert max(row["response"]["attempts"] for row in found) > 1
    assert {row["response"]["endpoint"] for row in found} == {one.url, other.url}
    assert Counter(one.answered + other.answered) == dict.fromkeys(KEYS, 1)
    assert broken.asked
    assert summary(run.dir)["time_s"]["workload"] < 10


STRANGE = (
    "", "null", "[]", "[" * 5000, '"text"', "<html>", "{}", '{"choices": []}', '{"choices": null}', '{"choices": {}}',
    '{"choices": [null]}', '{"choices": [{"message": null}]}', '{"choices": [{"message": {"content": 4}}]}',
    '{"choices": [{"message": {"content": "\\ud800"}}]}', '{"error": {"message": "try again"}}',
)  # fmt: skip


def test_answers_that_are_none(tmp_path: Path) -> None:
    left = iter(STRANGE)
    counts = {"prompt_tokens": "many", "completion_tokens": [4], "total_tokens": {}, "prompt_tokens_details": 3}

    def strange(key: Key) -> Fault | None:
        """Something that is no answer, then answers whose counts make no sense."""
        choices = [{"message": {"content": answer(*key)}, "finish_reason": "stop"}]
        return Fault.garbage(next(left, json.dumps({"choices": choices, "usage": counts})))

    with Server.in_thread(strange) as server:
        run = Run(tmp_path, [server.url])
        assert run.to_end() == 0, run.said
    found = run.check()
    assert sum(row["response"]["attempts"] for row in found) == len(server.asked) == len(KEYS) + len(STRANGE)


def _no_header() -> tuple[dict[str, str], float]:
    return {}, 0.0


def _seconds() -> tuple[dict[str, str], float]:
    return {"Retry-After": "1"}, time.time() + 1


def _date() -> tuple[dict[str, str], float]:
    at = int(time.time()) + 2
    return {"Retry-After": formatdate(at, usegmt=True)}, at


@pytest.mark.parametrize("header", [_no_header, _seconds, _date])
def test_too_many_requests(tmp_path: Path, header: Callable[[], tuple[dict[str, str], float]]) -> None:
    """All that are in flight are refused, twice in a row; more than `max_attempts` allows of other failures."""
    welcome_at: list[float] = []

    def busy(_: object) -> Fault | None:
        if len(welcome_at) >= 2 * IN_FLIGHT:
            return None
        headers, at = header()
        welcome_at.append(at)
        return Fault.http(429, "slow down", headers=headers)

    with Server.in_thread(busy) as server:
        run = Run(tmp_path, [server.url], f"workload.concurrency={IN_FLIGHT}", "workload.max_attempts=1")
        assert run.to_end() == 0, run.said
    found = run.check()
    assert Counter(server.answered) == dict.fromkeys(KEYS, 1)
    assert len(server.asked) == len(KEYS) + 2 * IN_FLIGHT
    assert max(row["response"]["attempts"] for row in found) == 3
    # Before the first refusal is read all others of its round may be on their way, so the last of a round counts.
    for refused in (IN_FLIGHT, 2 * IN_FLIGHT):
        assert min(server.asked_at[refused:]) >= max(welcome_at[:refused])
    came = defaultdict(list)
    for key, at in zip(server.asked, server.asked_at, strict=True):
        came[key].append(at)
    for first, *again in came.values():
        assert not again or again[0] - first >= 0.25, "without a header the client waits by itself"


def test_all_are_refused_for_good(tmp_path: Path) -> None:
    with Server.in_thread(lambda _: Fault.http(400, "the prompt is too long")) as server:
        run = Run(tmp_path, [server.url])
        assert run.to_end() == 1
    found = run.check(errors=dict.fromkeys(KEYS, "http_400"))
    assert all("the prompt is too long" in row["error"]["message"] for row in found)
    assert Counter(server.asked) == dict.fromkeys(KEYS, 1)
    assert summary(run.dir)["time_s"]["workload"] < 5
    assert run.said.count("the prompt is too long") == 1


def test_a_server_that_never_gets_well(tmp_path: Path) -> None:
    """The only server there is: each row has its tries, and doesn't wait for its deadline."""
    with Server.in_thread(lambda _: Fault.http(500, "CUDA error")) as server:
        run = Run(tmp_path, [server.url], "workload.max_attempts=3")
        assert run.to_end() == 1
    run.check(errors=dict.fromkeys(KEYS, "http_500"))
    assert Counter(server.asked) == dict.fromkeys(KEYS, 3)
    assert summary(run.dir)["time_s"]["workload"] < 30
