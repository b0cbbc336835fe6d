"""Files elsewhere: fsspec's memory:// and a web server on loopback stand in for the storages that need credentials."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from matrix.data import remote
from matrix.data.readers import BadRow, Dataset, load
from matrix.data.rows import Example
from matrix.data.sources import check_dataset
from matrix.errors import DataError
from matrix.spec.workload import DatasetSpec

fsspec = pytest.importorskip("fsspec")

ROWS = [{"n": number, "text": "ä" * number} for number in range(100)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def read(*paths: str, **options: Any) -> Dataset:
    return load(DatasetSpec(name="x", path=paths[0] if len(paths) == 1 else list(paths), **options))


def columns(dataset: Dataset) -> list[dict[str, Any]]:
    return [row.columns for row in dataset.examples if isinstance(row, Example)]


@pytest.fixture
def bucket() -> Iterator[str]:
    storage = fsspec.filesystem("memory")
    files = {"part-10.jsonl": LINES, "part-2.jsonl.gz": gzip.compress(b'{"n": 2}\n{\n'), "notes.md": b"notes"}
    for name, content in files.items():
        storage.pipe(f"/bucket/{name}", content)
    yield "memory://bucket"
    storage.rm("/bucket", recursive=True)


def test_rows_of_a_storage_stream_and_their_number_is_unknown(bucket: str) -> None:
    dataset = read(f"{bucket}/part-10.jsonl")
    assert columns(dataset) == columns(dataset) == ROWS
    assert dataset.total is None
    assert read(f"{bucket}/part-10.jsonl", limit=3).total is None
    assert len(columns(read(f"{bucket}/part-10.jsonl", limit=3))) == 3


def test_a_pattern_of_a_storage(bucket: str) -> None:
    rows = list(read(f"{bucket}/part-*").examples)
    assert rows[0] == Example("0", 0, {"n": 2})
    assert isinstance(rows[1], BadRow)
    assert rows[1].place == "memory:///bucket/part-2.jsonl.gz:2"
    assert rows[2:] == [Example(str(number + 2), number + 2, row) for number, row in enumerate(ROWS)]


def test_a_bad_row_of_a_storage_stops_the_run_where_it_is_met(bucket: str) -> None:
    dataset = read(f"{bucket}/part-2.jsonl.gz", on_bad_row="stop")
    with pytest.raises(DataError, match=r"part-2\.jsonl\.gz:2: not JSON"):
        list(dataset.examples)


def test_parquet_of_a_storage(bucket: str) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    with fsspec.open(f"{bucket}/a.parquet", "wb") as file:
        parquet.write_table(pyarrow.Table.from_pylist(ROWS), file)
    assert columns(read(f"{bucket}/a.parquet")) == ROWS


def test_the_fingerprint_of_a_storage_changes_with_the_content(bucket: str) -> None:
    before = read(f"{bucket}/part-10.jsonl").fingerprint
    assert read(f"{bucket}/part-10.jsonl").fingerprint == before
    fsspec.filesystem("memory").pipe("/bucket/part-10.jsonl", LINES + LINES)
    assert read(f"{bucket}/part-10.jsonl").fingerprint != before


def test_files_here_and_elsewhere_together(bucket: str, tmp_path: Any) -> None:
    (tmp_path / "a.jsonl").write_text('{"n": "here"}\n')
    dataset = read(str(tmp_path / "a.jsonl"), f"{bucket}/part-10.jsonl")
    assert columns(dataset) == [{"n": "here"}, *ROWS]
    assert dataset.total is None


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/part-3.jsonl", "no such file"),
        ("/x-*.jsonl", "no file fits this pattern"),
        ("", r"a folder, not a file \(files with rows in it: part-2\.jsonl\.gz, part-10\.jsonl\)"),
        ("/*", r"memory:///bucket/notes\.md: unknown ending '\.md'"),
        ("/part-10.josnl", r"unknown ending '\.josnl' \(did you mean \.jsonl\?\)"),
    ],
)
def test_what_is_wrong_with_an_address(bucket: str, path: str, message: str) -> None:
    with pytest.raises(DataError, match=f"dataset.path=memory://bucket.*{message}"):
        read(bucket + path)


def test_a_missing_driver_has_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "find_spec", lambda package: None if package == "gcsfs" else object())
    spec = DatasetSpec(name="x", path="gs://bucket/*.jsonl")
    assert check_dataset(spec) == "gs:// needs the package gcsfs (pip install gcsfs)"
    with pytest.raises(DataError, match="pip install gcsfs"):
        load(spec)


def test_an_unknown_kind_of_address() -> None:
    with pytest.raises(DataError, match=r"dataset.path=nope://a/b.jsonl: .*nope"):
        read("nope://a/b.jsonl")


class Web:
    """A web server that holds LINES in one file, with ranges or without."""

    def __init__(self, *, ranges: bool) -> None:
        self.asked: list[str] = []
        self.fail = 0
        web = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self.answer(with_body=False)

            def do_GET(self) -> None:
                self.answer(with_body=True)

            def answer(self, *, with_body: bool) -> None:
                web.asked.append(self.path)
                if web.fail or not self.path.startswith("/rows.jsonl"):
                    self.send_error(web.fail or 404)
                    return
                span = self.headers.get("Range") if ranges else None
                start, _, end = (span or "bytes=0-").removeprefix("bytes=").partition("-")
                body = LINES[int(start) : int(end) + 1 if end else None]
                self.send_response(206 if span else 200)
                if ranges:
                    self.send_header("Accept-Ranges", "bytes")
                    self.send_header("Content-Length", str(len(body)))
                if span:
                    self.send_header("Content-Range", f"bytes {start}-{int(start) + len(body) - 1}/{len(LINES)}")
                self.send_header("ETag", '"one"')
                self.end_headers()
                if with_body:
                    self.wfile.write(body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/rows.jsonl"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture(params=[True, False], ids=["ranges", "no ranges"])
def web(request: pytest.FixtureRequest) -> Iterator[Web]:
    web = Web(ranges=request.param)
    yield web
    web.server.shutdown()
    web.server.server_close()


def test_rows_of_a_web_server(web: Web) -> None:
    dataset = read(web.url)
    assert columns(dataset) == columns(dataset) == ROWS
    assert dataset.total is None


def test_the_query_of_a_web_address_is_sent_and_never_shown(web: Web) -> None:
    url = f"{web.url}?signature=secret"
    assert check_dataset(DatasetSpec(name="x", path=url)) is None
    rows = list(read(url, id_key="text").examples)
    assert isinstance(rows[0], BadRow)
    assert rows[0].place == f"{web.url}:1"
    assert set(web.asked) == {"/rows.jsonl?signature=secret"}


def test_a_web_server_that_fails(web: Web) -> None:
    with pytest.raises(DataError, match=r"nope\.jsonl: no such file"):
        read(web.url.replace("rows", "nope"))
    dataset = read(web.url)
    web.fail = 403
    with pytest.raises(DataError, match=r"rows\.jsonl: (can't be reached|cannot be read): .*403"):
        read(web.url)
    with pytest.raises(DataError, match=r"rows\.jsonl: cannot be read: .*403"):
        list(dataset.examples)


def test_nobody_at_the_address() -> None:
    with pytest.raises(DataError, match=r"127\.0\.0\.1:9/a\.jsonl: can't be reached: ClientConnectorError"):
        read("http://127.0.0.1:9/a.jsonl")


def test_rows_of_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    boto3, moto = pytest.importorskip("boto3"), pytest.importorskip("moto.server")
    for key, value in {
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(key, value)
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    client = boto3.client("s3")
    client.create_bucket(Bucket="rows")
    for number in (2, 10):
        client.put_object(Bucket="rows", Key=f"data/part-{number}.jsonl", Body=f'{{"n": {number}}}\n'.encode())
    dataset = read("s3://rows/data/*.jsonl")
    assert columns(dataset) == [{"n": 2}, {"n": 10}]
    with pytest.raises(
        DataError, match=r"a folder, not a file \(files with rows in it: part-2\.jsonl, part-10\.jsonl\)"
    ):
        read("s3://rows/data")
    with pytest.raises(DataError, match="no such file"):
        read("s3://rows/data/part-3.jsonl")
    client.put_object(Bucket="rows", Key="data/part-2.jsonl", Body=b'{"n": 3}\n')
    assert read("s3://rows/data/*.jsonl").fingerprint != dataset.fingerprint
    server.stop()
