from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from matrix.errors import AppError
from matrix.models import s3
from matrix.models.source import check_source, resolve

SOURCE = "s3://bucket/models/tiny"
FILES = {"config.json": b"{}", "model-1.safetensors": b"one", "model-2.safetensors": b"two", "sub/extra.json": b"[]"}


def test_without_boto3_the_check_names_it(monkeypatch):
    monkeypatch.setattr(s3, "find_spec", lambda name: None)

    assert "pip install 'boto3" in (check_source(SOURCE) or "")
    with pytest.raises(AppError, match=r"model\.source=s3://bucket/models/tiny: models on S3 need boto3"):
        resolve(SOURCE, print)


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("boto3", reason="boto3 is not installed")
    moto = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    yield f"http://127.0.0.1:{running.get_host_and_port()[1]}"
    running.stop()


@pytest.fixture
def no_credentials(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@pytest.fixture
def credentials(no_credentials, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


@pytest.fixture
def bucket(server, credentials, monkeypatch):
    """A fresh bucket that holds a model; puts and deletes objects under its prefix."""
    import boto3

    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    client = boto3.Session().client("s3")
    client.create_bucket(Bucket="bucket")

    def put(name: str, content: bytes | None) -> None:
        key = f"models/tiny/{name}"
        if content is None:
            client.delete_object(Bucket="bucket", Key=key)
        else:
            client.put_object(Bucket="bucket", Key=key, Body=content)

    for name, content in FILES.items():
        put(name, content)
    yield put
    for item in client.list_objects_v2(Bucket="bucket").get("Contents", []):
        client.delete_object(Bucket="bucket", Key=item["Key"])
    client.delete_bucket(Bucket="bucket")


@pytest.fixture
def fetched(monkeypatch) -> list[str]:
    """The keys that were downloaded, in order."""
    import boto3

    keys: list[str] = []
    original = boto3.Session.client

    def client(*args, **kwargs):
        made = original(*args, **kwargs)
        download = made.download_file
        made.download_file = lambda bucket, key, path: (keys.append(Path(key).name), download(bucket, key, path))
        return made

    monkeypatch.setattr(boto3.Session, "client", client)
    return keys


def content(folder: str) -> dict[str, bytes]:
    root = Path(folder)
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_prefix_is_downloaded_once(bucket, fetched, cache):
    said: list[str] = []

    first = resolve(SOURCE, said.append)
    second = resolve(f"{SOURCE}/", said.append)

    assert content(first.path) == FILES
    assert Path(first.path).is_relative_to(cache / "models" / "s3" / "bucket" / "models--tiny")
    assert (first.revision, first.origin) == (Path(first.path).name, SOURCE)
    assert first.checksum is not None
    assert (second.path, second.checksum) == (first.path, first.checksum)
    assert sorted(fetched) == sorted(Path(name).name for name in FILES)
    assert said == [f"downloading 4 files (0.00 GB) of {SOURCE} into {Path(first.path).parent}"]


def test_only_what_changed_is_downloaded_and_the_old_folder_stays(bucket, fetched):
    old = resolve(SOURCE, print)
    fetched.clear()
    bucket("model-2.safetensors", b"new")
    bucket("sub/extra.json", None)

    new = resolve(SOURCE, print)

    assert fetched == ["model-2.safetensors"]
    assert new.path != old.path
    assert new.checksum != old.checksum
    kept = {name: value for name, value in FILES.items() if name != "sub/extra.json"}
    assert content(new.path) == kept | {"model-2.safetensors": b"new"}
    assert content(old.path) == FILES


def test_a_download_that_was_cut_goes_on_with_the_file_it_was_at(bucket, fetched, monkeypatch):
    original = s3.S3Source._link
    monkeypatch.setattr(s3.S3Source, "_link", lambda *args: (_ for _ in ()).throw(OSError("No space left on device")))
    with pytest.raises(AppError, match=r"No space left.*MATRIX_CACHE"):
        resolve(SOURCE, print)
    base = next(Path(os.environ["MATRIX_CACHE"]).glob("models/s3/bucket/models--tiny"))
    assert [path.name for path in base.iterdir()] == ["blobs"]
    cut = next(path for path in (base / "blobs").iterdir() if path.read_bytes() == b"two")
    cut.rename(cut.with_name(f".{cut.name}.partial"))
    cut.with_name(f".{cut.name}.partial").write_bytes(b"t")
    monkeypatch.setattr(s3.S3Source, "_link", original)
    fetched.clear()

    assert content(resolve(SOURCE, print).path) == FILES
    assert fetched == ["model-2.safetensors"]
    assert not list((base / "blobs").glob(".*"))


def test_a_damaged_blob_is_downloaded_again(bucket, fetched):
    model = resolve(SOURCE, print)
    fetched.clear()
    (Path(model.path) / "model-1.safetensors").resolve().write_bytes(b"o")

    assert content(resolve(SOURCE, print).path) == FILES
    assert fetched == ["model-1.safetensors"]


def test_other_weights_than_safetensors_stay_where_they_are(bucket):
    bucket("pytorch_model.bin", b"x")
    bucket("original/consolidated.pth", b"x")

    assert content(resolve(SOURCE, print).path) == FILES


def test_the_cache_does_where_the_bucket_cannot_be_reached(bucket, monkeypatch):
    known = resolve(SOURCE, print)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    said: list[str] = []

    assert resolve(SOURCE, said.append) == known
    assert "cannot be reached" in said[0]

    with pytest.raises(AppError, match=r"neither the bucket nor the cache has it[\s\S]*models--other"):
        resolve("s3://bucket/models/other", print)


def test_what_cannot_be_loaded_is_not_downloaded(bucket, cache):
    bucket("config.json", None)
    with pytest.raises(AppError, match=r"3 objects are there, but no config.json"):
        resolve(SOURCE, print)
    with pytest.raises(AppError, match="0 objects are there"):
        resolve("s3://bucket/models/tin", print)
    assert not cache.exists()


def test_a_key_that_leads_out_of_the_cache_is_refused(bucket, cache):
    bucket("../../x", b"x")

    with pytest.raises(AppError, match="outside the cache"):
        resolve(SOURCE, print)


def test_a_bucket_that_isnt_there_is_an_error_with_the_ways_out(bucket):
    with pytest.raises(AppError, match=r"NoSuchBucket[\s\S]*AWS_ENDPOINT_URL"):
        resolve("s3://no-such-bucket/x", print)


def test_a_connection_lost_in_the_download_is_no_reason_to_take_an_old_folder(bucket, monkeypatch):
    resolve(SOURCE, print)
    bucket("model-2.safetensors", b"new")
    fetched = s3.S3Source._fetched

    def fetch(self, client, listing, say):
        client.meta.events.register("before-send.s3.*", lambda request, **kwargs: unplug(request))
        return fetched(self, client, listing, say)

    def unplug(request):
        from botocore.exceptions import EndpointConnectionError

        raise EndpointConnectionError(endpoint_url=request.url)

    monkeypatch.setattr(s3.S3Source, "_fetched", fetch)

    with pytest.raises(AppError, match=r"Could not connect[\s\S]*what was fetched is kept"):
        resolve(SOURCE, print)


def test_an_unknown_profile_is_an_error_with_the_ways_out(server, credentials, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")

    with pytest.raises(AppError, match=r"no-such-profile[\s\S]*AWS_PROFILE"):
        resolve(SOURCE, print)


def test_without_credentials_the_error_says_how_to_give_them(server, no_credentials, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)

    with pytest.raises(AppError, match=r"no AWS credentials. Set AWS_PROFILE"):
        resolve(SOURCE, print)


def test_the_folder_can_move_with_its_cache(bucket, cache, tmp_path):
    model = resolve(SOURCE, print)

    cache.rename(tmp_path / "moved")

    assert content(str(tmp_path / "moved" / Path(model.path).relative_to(cache))) == FILES
    assert json.loads((tmp_path / "moved" / Path(model.path).relative_to(cache) / "config.json").read_text()) == {}
