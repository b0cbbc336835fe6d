"""The URLs of an app that is in use: how often the cluster is asked for them."""

from __future__ import annotations

import asyncio
import threading

from matrix.apps.directory import AppRecord, Directory, ReplicaState
from matrix.apps.lookup import Updater, describe
from matrix.errors import AppError


class Replicas:
    """What the cluster would say."""

    def __init__(self) -> None:
        self.urls = ["http://a/v1"]
        self.asked = 0
        self.gone = False
        self.answers = threading.Event()
        self.answers.set()

    def __call__(self) -> list[str]:
        self.asked += 1
        self.answers.wait(5)
        if self.gone:
            raise AppError("nobody answers")
        return self.urls


async def test_the_cluster_is_asked_when_the_answer_is_old_or_that_is_wanted() -> None:
    replicas = Replicas()
    updater = Updater(replicas, ["http://old/v1"], ttl_s=0.2)
    assert await updater() == ["http://old/v1"]
    assert replicas.asked == 0
    await asyncio.sleep(0.25)
    assert await updater() == ["http://a/v1"]
    assert await updater() == ["http://a/v1"]
    assert replicas.asked == 1
    assert await updater(True) == ["http://a/v1"]
    assert replicas.asked == 2


async def test_one_asks_for_all_and_nobody_else_waits() -> None:
    replicas = Replicas()
    replicas.answers.clear()
    updater = Updater(replicas, ["http://old/v1"], ttl_s=0.05)
    await asyncio.sleep(0.06)
    asking = [asyncio.create_task(updater()) for _ in range(50)]
    done, waiting = await asyncio.wait(asking, timeout=0.03)
    assert (len(done), len(waiting)) == (49, 1)
    replicas.answers.set()
    assert await waiting.pop() == ["http://a/v1"]
    assert replicas.asked == 1


async def test_without_an_answer_the_urls_stay() -> None:
    replicas = Replicas()
    updater = Updater(replicas, ["http://old/v1"], ttl_s=60)
    replicas.gone = True
    assert await updater(True) == ["http://old/v1"]


def test_any_event_loop_may_use_it() -> None:
    updater = Updater(Replicas(), [], ttl_s=0)
    assert [asyncio.run(updater()) for _ in range(2)] == [["http://a/v1"]] * 2


def test_the_directory_forgets_an_app_as_a_whole() -> None:
    record = AppRecord("a", "m", "engine", "secret", {})
    directory = Directory()
    directory.register(record)
    directory.announce("a", ReplicaState("1", "http://a/v1", "ready"))
    assert directory.apps() == [record]
    directory.forget("a")
    assert directory.apps() == directory.replicas("a") == []


def test_the_key_of_an_app_is_not_shown_by_chance() -> None:
    assert "secret" not in repr(AppRecord("a", "m", "engine", "secret", {}))


def test_an_app_without_a_replica_has_no_port() -> None:
    found = describe(AppRecord("a", "m", "engine", "secret", {}), [])
    assert (found["http_port"], found["endpoint_template"]) == (None, None)
