"""`matrix inference` as a user runs it, against servers that are there already."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hydra.core.override_parser.overrides_parser import OverridesParser

from matrix.inference.command import quoted
from tests.command import environment
from tests.fake_engine import FakeEngine, Fault
from tests.serving_backend import EchoBackend, in_thread

MAIN = "from matrix.cli import main; main()"


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", MAIN, "inference", *arguments]


def infer(cwd: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        cwd=cwd, env=environment(**env), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def write(file: Path, *texts: str) -> Path:
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


class Many(FakeEngine):
    """A server with several models."""

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": name} for name in ("small", "large")]})


class Mute(FakeEngine):
    """A server that doesn't say which models it has."""

    async def _models(self, _: web.Request) -> web.Response:
        return web.Response(status=404)


class Locked(FakeEngine):
    """A server that shows its models only to who has its key."""

    async def _models(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {self.api_key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        return await super()._models(request)


def test_rows_of_a_file_through_a_server_that_is_asked_by_grpc(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", "one", "two")
    backend = EchoBackend()
    with in_thread(backend, "sesame") as url:
        arguments = (f"app={url}", "input=in.jsonl", "output=out.jsonl")
        denied = infer(tmp_path, *arguments)
        done = infer(tmp_path, *arguments, "engine.api_key_env=SECRET", SECRET="sesame")
    assert denied.returncode == 2
    assert "engine.api_key_env=NAME" in denied.stderr
    assert done.returncode == 0, done.stderr
    assert [row["response"]["text"] for row in read(tmp_path / "out.jsonl")] == [["one"], ["two"]]
    assert {body["model"] for body in backend.requests} == {"echo"}


def test_rows_of_a_file_through_a_server(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", "one", "two", "three")
    with FakeEngine.in_thread(model="org/some-model") as engine:
        done = infer(tmp_path, f"app={engine.root}", "input=in.jsonl", "output=new/out.jsonl", "sampling.temperature=0")
    assert done.returncode == 0, done.stderr
    assert "3 rows in new/out.jsonl" in done.stdout
    found = read(tmp_path / "new" / "out.jsonl")
    assert [(row["index"], row["status"], row["response"]["text"]) for row in found] == [
        (0, "ok", ["one"]),
        (1, "ok", ["two"]),
        (2, "ok", ["three"]),
    ]
    assert {body["model"] for body in engine.requests} == {"org/some-model"}
    assert {body["temperature"] for body in engine.requests} == {0}
    assert not any("Authorization" in headers for headers in engine.headers)
    assert {"spec.yaml", "summary.json", "run.log"} <= {
        file.name for file in (tmp_path / "new/out.jsonl.run").iterdir()
    }
    assert not list(tmp_path.rglob("*.wandb"))
    assert not (tmp_path / "outputs").exists()


def test_several_inputs_with_odd_names_as_a_table(tmp_path: Path) -> None:
    from pyarrow import parquet

    write(tmp_path / "it's a [set], 1.jsonl", "one")
    write(tmp_path / "part-2.jsonl", "two")
    write(tmp_path / "part-10.jsonl", "ten")
    inputs = ("input=it's a [set], 1.jsonl", "input=part-*.jsonl")
    with FakeEngine.in_thread() as engine:
        done = infer(tmp_path, f"app={engine.url}/", *inputs, "output=o ut.parquet")
    assert done.returncode == 0, done.stderr
    table = parquet.read_table(tmp_path / "o ut.parquet").to_pylist()
    assert [row["response"]["text"] for row in table] == [["one"], ["two"], ["ten"]]


def test_a_run_that_was_killed_goes_on_with_the_same_command(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", *map(str, range(40)))
    with FakeEngine.in_thread(latency_s=0.1) as engine:
        arguments = (f"app={engine.url}", "input=in.jsonl", "output=out.jsonl", "workload.concurrency=4")
        process = subprocess.Popen(
            command(*arguments), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        while len(engine.requests) < 12:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.kill()
        process.communicate()
        assert not (tmp_path / "out.jsonl").exists()
        done = infer(tmp_path, *arguments)
        assert done.returncode == 0, done.stderr
        assert 40 <= len(engine.requests) <= 44
        assert [row["response"]["text"] for row in read(tmp_path / "out.jsonl")] == [[str(i)] for i in range(40)]
        asked = len(engine.requests)
        again = infer(tmp_path, *arguments)
        assert again.returncode == 0, again.stderr
        assert len(engine.requests) == asked
        assert len(read(tmp_path / "out.jsonl")) == 40


def test_ctrl_c_says_how_to_go_on_and_that_works(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", *map(str, range(20)))
    with FakeEngine.in_thread(latency_s=0.2) as engine:
        arguments = (f"app={engine.url}", "input=in.jsonl", "output=out.jsonl", "workload.concurrency=2")
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command(*arguments), cwd=tmp_path, env=environment(), stdout=pipe, stderr=pipe, text=True
        )
        while len(engine.requests) < 6:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
        assert process.returncode == 130
        assert "Traceback" not in said
        resume = said.strip().splitlines()[-1].split()
        assert resume[:2] == ["matrix", "inference"]
        done = infer(tmp_path, *resume[2:])
    assert done.returncode == 0, done.stderr
    assert len(read(tmp_path / "out.jsonl")) == 20


def test_what_somebody_else_wrote_stays(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", "one")
    output = write(tmp_path / "out.jsonl", "precious")
    with FakeEngine.in_thread() as engine:
        arguments = (f"app={engine.url}", "input=in.jsonl")
        done = infer(tmp_path, *arguments, "output=out.jsonl")
        assert done.returncode == 2
        assert "output=out.jsonl: is there already, and not from this run" in done.stderr
        assert read(output) == [{"text": "precious"}]
        assert not (tmp_path / "out.jsonl.run").exists()

        assert infer(tmp_path, *arguments, "output=mine.jsonl").returncode == 0
        changed = (tmp_path / "mine.jsonl").read_text().replace("one", "uno")
        (tmp_path / "mine.jsonl").write_text(changed)
        again = infer(tmp_path, *arguments, "output=mine.jsonl")
        assert again.returncode == 2
        assert (tmp_path / "mine.jsonl").read_text() == changed
        assert len(engine.requests) == 1


def test_other_settings_are_another_run(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", "one")
    with FakeEngine.in_thread() as engine:
        arguments = (f"app={engine.url}", "input=in.jsonl", "output=out.jsonl")
        assert infer(tmp_path, *arguments).returncode == 0
        before = (tmp_path / "out.jsonl").read_bytes()
        done = infer(tmp_path, *arguments, "sampling.temperature=0.123")
        assert done.returncode == 2
        assert "sampling.temperature=0.123: the run dir was made with" in done.stderr
        assert (tmp_path / "out.jsonl").read_bytes() == before
        elsewhere = infer(tmp_path, *arguments[:2], "output=new/out.jsonl", "run.dir='else where'")
        assert elsewhere.returncode == 0, elsewhere.stderr
    assert (tmp_path / "else where" / "spec.yaml").is_file()
    assert len(read(tmp_path / "new" / "out.jsonl")) == 1


def test_failed_rows_are_in_the_output(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", "good", "bad")
    fault = Fault.http(400, "too long")
    with FakeEngine.in_thread(fail=lambda body: fault if "bad" in str(body) else None) as engine:
        done = infer(tmp_path, f"app={engine.url}", "input=in.jsonl", "output=out.jsonl")
        assert done.returncode == 0, done.stderr
        write(tmp_path / "in2.jsonl", "bad", "bad")
        none = infer(tmp_path, f"app={engine.url}", "input=in2.jsonl", "output=out2.jsonl")
    assert [row["status"] for row in read(tmp_path / "out.jsonl")] == ["ok", "error"]
    assert none.returncode == 1
    assert [row["error"]["type"] for row in read(tmp_path / "out2.jsonl")] == ["http_400"] * 2


def test_a_budget_that_ends_the_run_leaves_no_output_yet(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", *map(str, range(20)))
    with FakeEngine.in_thread() as engine:
        arguments = (f"app={engine.url}", "input=in.jsonl", "output=out.jsonl", "workload.concurrency=1")
        price = ("model.price.input_per_million=1000000", "model.price.output_per_million=0")
        done = infer(tmp_path, *arguments, *price, "workload.budget_usd=5")
        assert done.returncode == 3
        assert not (tmp_path / "out.jsonl").exists()
        assert "out.jsonl is written once all rows are there" in done.stderr
        more = infer(tmp_path, *arguments, *price)
    assert more.returncode == 0, more.stderr
    assert len(read(tmp_path / "out.jsonl")) == len(engine.requests) == 20


def test_a_server_that_wants_a_key(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", "one")
    with Locked.in_thread(api_key="sesame", model="locked") as engine:
        arguments = (f"app={engine.url}", "input=in.jsonl", "output=out.jsonl")
        without = infer(tmp_path, *arguments, OPENAI_API_KEY="for somebody else")
        assert without.returncode == 2
        assert "401" in without.stderr
        assert "engine.api_key_env=NAME" in without.stderr
        assert not engine.requests
        done = infer(tmp_path, *arguments, "engine.api_key_env=MY_KEY", MY_KEY="sesame")
    assert done.returncode == 0, done.stderr
    assert engine.requests[0]["model"] == "locked"
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or b"sesame" not in file.read_bytes(), file


def test_the_model_has_to_be_given_where_there_is_a_choice(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", "one")
    arguments = ("input=in.jsonl", "output=out.jsonl")
    with Many.in_thread() as many, Mute.in_thread() as mute:
        asked = infer(tmp_path, f"app={many.url}", *arguments)
        assert asked.returncode == 2
        assert "model.name: has to be given, since the server has 2 models (one of: small, large)" in asked.stderr
        unknown = infer(tmp_path, f"app={mute.url}", *arguments)
        assert unknown.returncode == 2
        assert "model.name=NAME" in unknown.stderr
        assert not (tmp_path / "out.jsonl.run").exists()
        done = infer(tmp_path, f"app={mute.url}", *arguments, "model.name=org/mine")
    assert done.returncode == 0, done.stderr
    assert not many.requests
    assert mute.requests[0]["model"] == "org/mine"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], ["app: is missing", "input: is missing", "output: is missing"]),
        (["app=http://127.0.0.1:9", "input=in.jsonl", "output=o.jsonl"], ["app=http://127.0.0.1:9/v1", "127.0.0.1"]),
        (["app=127.0.0.1:9", "input=in.jsonl", "output=o.jsonl"], ["app=http://127.0.0.1:9"]),
        (["app=grpc://a", "input=in.jsonl", "output=o.jsonl"], ["app=grpc://HOST:PORT"]),
        (["app=ftp://a", "input=in.jsonl", "output=o.jsonl"], ["nor one for gRPC"]),
        (
            ["app=http://a", "input=im.jsonl", "output=o.jsonl"],
            ["input=im.jsonl: no such file (did you mean in.jsonl?)"],
        ),
        (["app=http://a", "input=in.jsonl", "output=o.txt"], ["output=o.txt", ".jsonl or .parquet"]),
        (["app=http://a", "input=in.jsonl", "output=dir.jsonl"], ["output=dir.jsonl: is a folder"]),
        (["app=http://a", "app=http://b", "input=in.jsonl", "output=o.jsonl"], ["more than once"]),
        (
            ["app=http://a", "input=im.jsonl", "output=o.txt", "sampling.temprature=0", "engine=vllm", "-m"],
            ["input=im.jsonl", "output=o.txt", "sampling.temperature", "engine=vllm", "-m: no such flag"],
        ),
        (["app=name", "cluster=local", "input=in.jsonl", "output=o.jsonl"], ["cluster=attach"]),
        (["app=http://a", "engine.api_key_env=NOT_SET", "input=in.jsonl", "output=o.jsonl"], ["NOT_SET"]),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(arguments: list[str], said: list[str], tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", "one")
    (tmp_path / "dir.jsonl").mkdir()
    done = infer(tmp_path, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    for text in said:
        assert text in done.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ["dir.jsonl", "in.jsonl"]


def test_rows_that_are_no_file_of_the_user_need_no_input(tmp_path: Path) -> None:
    data = "dataset.path=package:matrix.data/samples/questions.jsonl"
    with FakeEngine.in_thread() as engine:
        done = infer(
            tmp_path, f"app={engine.url}", data, "dataset.limit=2", "pipeline.text_key=question", "output=o.jsonl"
        )
    assert done.returncode == 0, done.stderr
    assert len(read(tmp_path / "o.jsonl")) == 2


def test_help_has_examples_and_imports_little(tmp_path: Path) -> None:
    spied = f"import sys; sys.argv[1:] = ['inference', '--help']\ntry:\n  {MAIN}\nfinally: print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", spied], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True
    )
    assert "matrix inference app=http" in done.stdout
    assert not {"ray", "aiohttp", "vllm", "rich", "wandb"} & set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "it's",
        "a,b",
        "[a]",
        "{a: b}",
        'say "hi"',
        "back\\slash",
        "end\\",
        "\\'",
        " ",
        "=",
        "a b",
        "null",
        "1",
        "#",
    ],
)
def test_any_text_reaches_the_config_as_it_is(text: str) -> None:
    (override,) = OverridesParser.create().parse_overrides([f"key={quoted(text)}"])
    assert override.value() == text


def test_what_would_be_dropped_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", "one")
    arguments = ("app=http://127.0.0.1:9/v1", "input=in.jsonl", "output=out.jsonl")
    done = infer(tmp_path, *arguments, "dataset.path=in.jsonl", "engine.base_url=http://127.0.0.1:8/v1")
    assert done.returncode == 2
    assert "input=in.jsonl: another data set is given, too" in done.stderr
    assert "engine.base_url=http://127.0.0.1:8/v1: app= says who is asked" in done.stderr
    done = infer(tmp_path, "app=http://127.0.0.1:9/v1/chat/completions", *arguments[1:])
    assert done.returncode == 2
    assert "(app=http://127.0.0.1:9/v1)" in done.stderr
