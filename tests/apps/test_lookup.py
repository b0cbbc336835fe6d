"""The URLs of an app that is in use: how often the cluster is asked for them."""

from __future__ import annotations

import asyncio
import threading

import pytest

from matrix.apps.directory import AppRecord, Directory, ReplicaState
from matrix.apps.lookup import (
    Updater,
    all_apps,
    cluster_key,
    describe,
    urls_of,
    wait_for_urls,
    wanted_urls,
)
from matrix.errors import AppError
from matrix.spec import Replicas as Replicas_


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
    async with asyncio.timeout(4):
        while sum(task.done() for task in asking) < 49:
            await asyncio.sleep(0.01)
    (waiting,) = [task for task in asking if not task.done()]
    replicas.answers.set()
    assert await waiting == ["http://a/v1"]
    assert replicas.asked == 1


async def test_without_an_answer_the_urls_stay() -> None:
    replicas = Replicas()
    updater = Updater(replicas, ["http://old/v1"], ttl_s=60)
    replicas.gone = True
    assert await updater(True) == ["http://old/v1"]


def test_any_event_loop_may_use_it() -> None:
    updater = Updater(Replicas(), [], ttl_s=0)
    assert [asyncio.run(updater()) for _ in range(2)] == [["http://a/v1"]] * 2


def record(**changes: object) -> AppRecord:
    given = {"name": "a", "model_name": "m", "kind": "vllm", "version": "1", "replicas": Replicas_(), "args": {}}
    return AppRecord(**{**given, "spec": {}, "kept": True, "api_key": "secret", **changes})  # type: ignore[arg-type]


def state(replica: str = "1", **changes: object) -> ReplicaState:
    return ReplicaState(
        **{"replica": replica, "version": "1", "url": "http://a/v1", "grpc_url": None, "detail": "ready", **changes}
    )  # type: ignore[arg-type]


async def test_the_directory_forgets_an_app_as_a_whole() -> None:
    directory = Directory("secret")
    await directory.register(record(api_key=""))
    await directory.announce("a", state())
    assert await directory.apps() == [record()]
    await directory.forget("a", patient=False)
    assert await directory.apps() == await directory.replicas("a") == []


async def test_replicas_of_an_app_that_goes_finish_their_work_if_they_may() -> None:
    directory = Directory("secret")
    for patient in (True, False):
        await directory.register(record())
        await directory.announce("a", state())
        await directory.forget("a", patient=patient)
        assert await directory.withdraw("a", "1") is patient


async def test_a_replica_that_failed_is_nobodys_any_more_and_its_last_words_stay() -> None:
    directory = Directory("secret")
    await directory.register(record())
    await directory.announce("a", state())
    await directory.report("a", "1", 3, 2)
    assert [(found.running, found.waiting) for found in await directory.want("a")] == [(3, 2)]
    await directory.fail("a", "1", "it hangs")
    await directory.withdraw("a", "1")
    assert [(found.url, found.detail) for found in await directory.replicas("a")] == [(None, "it hangs")]


def test_the_key_of_an_app_is_not_shown_by_chance() -> None:
    assert "secret" not in repr(record())


def test_an_app_without_a_replica_has_no_port() -> None:
    found = describe(record(), [], [], None)
    assert (found["http_port"], found["endpoint_template"]) == (None, None)


def test_with_a_front_door_that_is_where_it_is() -> None:
    door = {"url": "http://h:8000", "port": 8000, "grpc_url": "grpc://h:8001", "grpc_port": 8001}
    found = describe(record(), ["http://h:1/v1"], ["grpc://h:2"], door)
    assert (found["http_port"], found["grpc_port"], found["use_grpc"]) == (8000, 8001, True)
    assert found["endpoint_template"] == "http://{host}:8000/a/v1"


def test_a_cluster_that_is_gone_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> None:
        raise ConnectionError("no GCS")

    monkeypatch.setattr("matrix.apps.lookup.existing_directory", gone)
    for ask in (all_apps, cluster_key, lambda: urls_of("a"), lambda: wanted_urls("a"), lambda: wait_for_urls("a", 1)):
        with pytest.raises(AppError, match=r"the cluster doesn't answer: .*no GCS"):
            ask()
