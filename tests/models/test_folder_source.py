from __future__ import annotations

import hashlib
import json
import os
import subprocess

import pytest

from matrix.errors import AppError
from matrix.models import weights
from matrix.models.source import check_source, resolve


def test_a_folder_is_taken_as_it_is_with_the_checksum_of_its_weights(model_folder):
    folder = model_folder(**{"model.safetensors": b"w"})

    model = resolve(str(folder), print)

    assert model.path == str(folder)
    assert model.revision is None
    assert model.checksum == f"sha256:{hashlib.sha256(b'w').hexdigest()}"
    assert model.origin == str(folder)


def test_a_relative_folder_comes_back_absolute(model_folder, tmp_path, monkeypatch):
    folder = model_folder()
    monkeypatch.chdir(tmp_path)

    assert resolve("./model", print).path == str(folder)
    assert resolve("model", print).path == str(folder)


def test_several_files_have_the_checksum_that_sha256sum_gives(model_folder):
    folder = model_folder(**{"model-2-of-2.safetensors": b"b", "model-1-of-2.safetensors": b"a", "other.bin": b"c"})
    (folder / "._model.safetensors").write_bytes(b"what some systems leave beside a file")

    pipe = "sha256sum *.safetensors | sha256sum"
    done = subprocess.run(pipe, shell=True, cwd=folder, capture_output=True, text=True, check=True)

    assert resolve(str(folder), print).checksum == f"sha256:{done.stdout.split()[0]}"


def test_weights_are_read_again_only_when_they_changed(model_folder, monkeypatch):
    folder = model_folder(**{"model.safetensors": b"old"})
    read: list[str] = []
    original = weights.sha256
    monkeypatch.setattr(weights, "sha256", lambda path: read.append(path.name) or original(path))

    first = resolve(str(folder), print).checksum
    assert resolve(str(folder), print).checksum == first
    assert read == ["model.safetensors"]

    (folder / "model.safetensors").write_bytes(b"new")
    os.utime(folder / "model.safetensors", ns=(0, 0))
    assert resolve(str(folder), print).checksum == f"sha256:{hashlib.sha256(b'new').hexdigest()}"
    assert read == ["model.safetensors"] * 2


def test_a_folder_beyond_the_limit_says_that_it_has_no_checksum(model_folder, monkeypatch):
    monkeypatch.setattr(weights, "HASH_LIMIT_GB", 1e-9)
    said: list[str] = []

    assert resolve(str(model_folder()), said.append).checksum is None
    assert "without a checksum" in said[0]


def test_a_cache_that_cannot_be_written_stops_no_folder(model_folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("MATRIX_CACHE", str(tmp_path / "file" / "cache"))

    assert resolve(str(model_folder()), print).checksum is not None


def test_what_a_folder_may_lack(model_folder, tmp_path):
    nowhere, no_config, no_weights, cut = tmp_path / "no", model_folder("a"), model_folder("b"), model_folder("c")
    (no_config / "config.json").unlink()
    (no_weights / "model.safetensors").unlink()
    (no_weights / "training_args.bin").touch()
    index = {"weight_map": {"x": "model.safetensors", "y": "model-2.safetensors"}}
    (cut / "model.safetensors.index.json").write_text(json.dumps(index))
    file = tmp_path / "x.gguf"
    file.touch()

    expected = {
        nowhere: f"there is no folder {nowhere}",
        no_config: "no config.json",
        no_weights: "no weights",
        cut: "lacks 1 of its weight files, such as model-2.safetensors",
        file: "python -m matrix.models.gguf",
    }
    for path, message in expected.items():
        assert message in (check_source(str(path)) or "")
        with pytest.raises(AppError, match=r"model\.source="):
            resolve(str(path), print)


def test_links_that_lead_nowhere_are_missing_files(model_folder):
    folder = model_folder(**{"pytorch_model-1-of-2.bin": b"a"})
    (folder / "pytorch_model-2-of-2.bin").symlink_to("gone")
    index = {"weight_map": {"x": "pytorch_model-1-of-2.bin", "y": "pytorch_model-2-of-2.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))

    assert "pytorch_model-2-of-2.bin" in (check_source(str(folder)) or "")
