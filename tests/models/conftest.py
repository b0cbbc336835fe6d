from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """A cache of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("MATRIX_CACHE", str(folder))
    return folder


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Installs a distribution as pip would: its files, its metadata and a RECORD with their hashes."""

    def install(name: str, files: dict[str, bytes], version: str = "1.2") -> Path:
        site = tmp_path / "site"
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = []
        for path, content in files.items():
            (site / path).parent.mkdir(parents=True, exist_ok=True)
            (site / path).write_bytes(content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
            lines.append(f"{path},sha256={digest},{len(content)}")
        (info / "RECORD").write_text("\n".join(lines) + "\n")
        monkeypatch.syspath_prepend(str(site))
        return site

    return install


@pytest.fixture
def model_folder(tmp_path):
    """Makes a folder that looks like a model: `config.json` and weights."""

    def make(name: str = "model", **weights: bytes) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        for file, content in (weights or {"model.safetensors": b"weights"}).items():
            (folder / file).write_bytes(content)
        return folder

    return make
