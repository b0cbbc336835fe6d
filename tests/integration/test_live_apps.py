"""Apps on a cluster that stays, while clients ask them: real Ray and Serve, the simulated engine, the command line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from openai import AuthenticationError, OpenAI

from tests.command import ROOT
from tests.fake_engine import FakeEngine
from tests.integration.family import Family
from tests.integration.kept import Cluster, engine_pids

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

PRETEND = ["engine=simulated", "engine.cpus=0.1", "engine.drain_timeout_s=20", "model=api", "model.name=pretend"]
OTHER = ["apps.other.engine=simulated", "apps.other.engine.cpus=0.1", "apps.other.model=api", "apps.other.model.name=o"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster.until_the_end(tmp_path_factory.mktemp("matrix")) as found:
        assert "added: pretend" in found.deploy(*PRETEND)
        yield found


class Load:
    """Clients of an app in a process of their own, until it is asked what they saw."""

    def __init__(self, cluster: Cluster, url: str, max_tokens: int = 32, at_a_time: int = 16) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.load", url, "pretend", str(max_tokens), str(at_a_time)],
            env={**cluster.env, "OPENAI_API_KEY": cluster.key},
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "asking\n"

    def end(self) -> dict[str, Any]:
        out, _ = self._process.communicate(timeout=360)
        return dict(json.loads(out))


def test_openais_client_works_and_strangers_do_not(cluster: Cluster) -> None:
    base = cluster.status()["front_door"] + "/v1"
    client = OpenAI(base_url=base, api_key=cluster.key)
    assert [model.id for model in client.models.list()] == ["pretend"]
    messages: Any = [{"role": "user", "content": "hello"}]
    answer = client.chat.completions.create(model="pretend", messages=messages, max_tokens=5)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5
    chunks = list(client.chat.completions.create(model="pretend", messages=messages, max_tokens=5, stream=True))
    assert len("".join(chunk.choices[0].delta.content or "" for chunk in chunks).split()) == 5
    for url in (base, *cluster.urls()):
        with pytest.raises(AuthenticationError):
            OpenAI(base_url=url, api_key="a guess", max_retries=0).models.list()


def test_the_same_again_changes_nothing(cluster: Cluster) -> None:
    before = cluster.urls()
    assert "unchanged: pretend" in cluster.deploy(*PRETEND)
    assert cluster.urls() == before


def test_an_engine_has_the_priority_of_whoever_started_the_cluster(cluster: Cluster) -> None:
    pids = engine_pids(cluster.urls()[0])
    assert pids
    assert {os.getpriority(os.PRIO_PROCESS, pid) for pid in pids} == {os.getpriority(os.PRIO_PROCESS, 0)}


def test_another_spec_is_refused_until_it_is_asked_for(cluster: Cluster) -> None:
    before = cluster.urls()
    said = cluster.deploy(*PRETEND, "engine.seed=7", code=1)
    assert re.search(r"app pretend is running with another spec \(engine.seed differ\): take --action replace", said)
    assert cluster.urls() == before


def test_adding_and_removing_leaves_the_others_alone(cluster: Cluster) -> None:
    pids = [engine_pids(url) for url in cluster.urls()]
    load = Load(cluster, cluster.door())
    assert "added: other" in cluster.deploy(*PRETEND, *OTHER, "app=other")
    assert cluster.app("other")["phase"] == "healthy"
    assert "app other is healthy" in cluster.command("check_health", "app=other").stdout
    assert "removed: other" in cluster.deploy("--action", "remove", "app=other")
    seen = load.end()
    assert seen["failures"] == []
    assert seen["requests"] > 100
    assert [engine_pids(url) for url in cluster.urls()] == pids
    assert [app["name"] for app in cluster.status()["apps"]] == ["pretend"]
    assert "did you mean pretend" in cluster.deploy("--action", "remove", "app=pretned", code=1)


def test_replacing_rolls_without_dropping_a_request(cluster: Cluster) -> None:
    before = cluster.urls()
    load = Load(cluster, cluster.door(), max_tokens=128)
    assert "replaced: pretend" in cluster.deploy("--action", "replace", *PRETEND, "engine.seed=3")
    # The old one goes when it has finished what it was working on.
    cluster.until(lambda: not set(before) & set(cluster.urls()))
    seen = load.end()
    assert seen["failures"] == []
    assert seen["requests"] > 50


def test_replicas_follow_the_load_and_one_that_goes_finishes_its_work(cluster: Cluster) -> None:
    limits = ["engine.replicas.max=2", "engine.replicas.target_in_flight=10", "engine.replicas.upscale_delay_s=1"]
    spec = [*PRETEND, "engine.seed=3", *limits, "engine.replicas.downscale_delay_s=4"]
    cluster.deploy("--action", "replace", *PRETEND, "engine.seed=3")
    cluster.until(lambda: len(cluster.urls()) == 1)
    first = cluster.urls()
    # Only limits: no new replicas for that.
    assert "unchanged: pretend" in cluster.deploy(*spec)
    load = Load(cluster, cluster.door(), max_tokens=256)
    cluster.until(lambda: len(cluster.urls()) == 2)
    assert set(first) < set(cluster.urls())
    assert load.end()["failures"] == []
    load = Load(cluster, cluster.door(), max_tokens=64, at_a_time=4)
    cluster.until(lambda: len(cluster.urls()) == 1)
    seen = load.end()
    assert seen["failures"] == []
    assert seen["requests"] >= 8


def test_an_engine_that_is_killed_is_replaced_and_no_request_fails(cluster: Cluster) -> None:
    cluster.deploy("--action", "replace", *PRETEND, "engine.seed=3", "engine.replicas=2")
    cluster.until(lambda: len(cluster.urls()) == 2)
    before = cluster.urls()
    load = Load(cluster, cluster.door(), max_tokens=16)
    for pid in engine_pids(before[0]):
        os.kill(pid, signal.SIGKILL)
    cluster.until(lambda: before[0] not in cluster.urls() and len(cluster.urls()) == 2)
    assert load.end()["failures"] == []


def test_an_engine_that_hangs_is_replaced(cluster: Cluster) -> None:
    before = cluster.urls()
    for pid in engine_pids(before[0]):
        os.kill(pid, signal.SIGSTOP)
    cluster.until(lambda: before[0] not in cluster.urls() and len(cluster.urls()) == 2, 90)
    assert engine_pids(before[0]) == []


def test_to_zero_and_back(cluster: Cluster) -> None:
    limits = ["engine.replicas.min=0", "engine.replicas.downscale_delay_s=8"]
    cluster.deploy(
        *PRETEND, *OTHER, "app=other", *[limit.replace("engine", "apps.other.engine", 1) for limit in limits]
    )
    cluster.until(lambda: not cluster.urls("other"))
    assert cluster.app("other")["phase"] == "idle"
    client = OpenAI(base_url=cluster.door("other"), api_key=cluster.key, max_retries=0, timeout=180)
    messages: Any = [{"role": "user", "content": "wake up"}]
    assert client.chat.completions.create(model="o", messages=messages, max_tokens=4).choices[0].finish_reason
    assert len(cluster.urls("other")) == 1
    cluster.deploy("--action", "remove", "app=other")


def test_grpc_and_http_say_the_same(cluster: Cluster) -> None:
    cluster.deploy(*PRETEND, *OTHER, "app=other", "apps.other.engine.grpc=true")
    said = cluster.command("check_health", "app=other", "use_grpc=true").stdout
    assert re.search(r"^ok  grpc://127\.0\.0\.1:\d+ ", said, re.MULTILINE)
    assert "app other is healthy" in said
    cluster.deploy("--action", "remove", "app=other")


def test_a_run_uses_the_app_that_is_there(cluster: Cluster, tmp_path: Path) -> None:
    before = cluster.urls()
    overrides = [
        *PRETEND,
        "engine.seed=3",
        "engine.replicas=2",
        "cluster=attach",
        "tracker=none",
        "sampling.max_tokens=8",
    ]
    done = cluster.command("run", *overrides, "pipeline=sample_qa", f"run.dir={tmp_path / 'run'}")
    assert "App pretend is up" in done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["rows"]["ok"], summary["rows"]["error"]) == (48, 0)
    assert cluster.urls() == before


def test_one_page_of_metrics(cluster: Cluster) -> None:
    import urllib.request

    url = f"{cluster.status()['front_door']}/metrics"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {cluster.key}"})
    page = urllib.request.urlopen(request, timeout=60).read().decode()
    answered = re.findall(r'^matrix_requests_total\{.*app="pretend".*\} ([\d.]+)$', page, re.MULTILINE)
    assert len(answered) == 2
    assert re.search(r'^ray_\w+\{.*node="[^"]+"', page, re.MULTILINE)


def test_what_cannot_be_placed_says_what_is_missing(cluster: Cluster) -> None:
    said = cluster.deploy(*PRETEND, *OTHER, "app=other", "apps.other.engine.cpus=64", code=2)
    assert "64" in said
    said = cluster.deploy(*PRETEND, *OTHER, "app=other", "plan=true")
    assert re.search(r"other +1 +simulated +o +this machine", said)


def test_a_gateway_shares_one_limit(cluster: Cluster) -> None:
    """An app in front of a server that is there already: what all clients send together stays below its limit."""
    sent: list[float] = []

    def note(_: Any) -> None:
        sent.append(time.monotonic())

    with FakeEngine.in_thread(fail=note, api_key="vendor's") as server:
        gateway = ["engine=openai", f"engine.base_url={server.url}", "engine.api_key_env=VENDOR_KEY", "engine.cpus=0.1"]
        model = ["model=api", "model.name=shared"]
        cluster.env["VENDOR_KEY"] = "vendor's"
        assert "added: shared" in cluster.deploy(*gateway, *model, "engine.requests_per_minute=120")
        door, key = cluster.door("shared"), cluster.key

        def ask(client: int) -> None:
            with OpenAI(base_url=door, api_key=key, max_retries=0, timeout=180) as asking:
                for number in range(10):
                    messages: Any = [{"role": "user", "content": f"{client} {number}"}]
                    answer = asking.chat.completions.create(model="shared", messages=messages)
                    assert answer.choices[0].message.content == f"{client} {number}"

        with ThreadPoolExecutor() as pool:
            list(pool.map(ask, range(2)))
        # Two a second, all clients together.
        assert len(sent) == 20
        assert sent[-1] - sent[0] > 19 / 2 - 2
        assert {headers["Authorization"] for headers in server.headers} == {"Bearer vendor's"}
        cluster.deploy("--action", "remove", "app=shared")


def test_a_keeper_that_is_killed_takes_its_cluster_along(tmp_path: Path) -> None:
    alone = Cluster(tmp_path / "alone")
    with Family() as family:
        alone.deploy(*PRETEND)
        noted = json.loads((tmp_path / "alone" / "clusters" / "local" / "cluster.json").read_text())
        os.kill(noted["pid"], signal.SIGKILL)
        assert family.left(within_s=30) == []
    assert len(family) > 10
    # What it noted is known to be stale.
    assert "there is no cluster on this machine" in alone.command("status", code=1).stderr


def test_a_replica_that_is_lost_while_it_loads_is_deployed_anew(cluster: Cluster) -> None:
    """As by the end of its node; an engine that fails by itself is told at once."""
    late = ["apps.late.engine=simulated", "apps.late.engine.cpus=0.1", "apps.late.model=api", "apps.late.model.name=l"]
    command = [sys.executable, "-c", "from matrix.cli import main; main()", "deploy_applications", *PRETEND, *late]
    deploy = subprocess.Popen([*command, "app=late"], env=cluster.env, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    pid = None
    while pid is None:
        assert deploy.poll() is None
        pid = next((pid for pid, line in _titles() if line.startswith("ray::ServeReplica:late")), None)
    os.kill(pid, signal.SIGKILL)
    _, said = deploy.communicate(timeout=360)
    assert deploy.returncode == 0, said
    assert "deployed anew" in said
    assert cluster.app("late")["phase"] == "healthy"
    cluster.deploy(*PRETEND, *late, "app=late", "--action", "remove")


def _titles() -> Iterator[tuple[int, str]]:
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield int(entry.parent.name), entry.read_bytes().decode(errors="replace")
        except OSError:
            continue
