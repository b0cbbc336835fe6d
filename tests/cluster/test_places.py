"""Folders of Ray on a node: one that is left over is removed, one that somebody has isn't."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from matrix.cluster.places import make_place


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_one_that_is_left_over_is_removed() -> None:
    left, owner = make_place()
    (left / "session").mkdir()
    os.close(owner)
    mine, owner = make_place()
    assert not left.exists()
    assert mine.exists()
    os.close(owner)


def test_one_that_is_in_use_stays() -> None:
    used, owner = make_place()
    heir = [sys.executable, "-c", "input()"]
    with subprocess.Popen(heir, stdin=subprocess.PIPE, pass_fds=[owner], stderr=subprocess.DEVNULL) as process:
        os.close(owner)
        _, other = make_place()
        assert used.exists(), "a process that was given it has it"
        process.communicate()
    os.close(other)
    _, other = make_place()
    assert not used.exists()
    os.close(other)


def test_those_of_other_nodes_and_of_others_stay(tmp_path: Path) -> None:
    (tmp_path / "matrix-ray-local").mkdir()
    elsewhere, owner = make_place()
    (elsewhere / "owner").write_text("another-node")
    os.close(owner)
    _, owner = make_place()
    assert elsewhere.exists()
    assert (tmp_path / "matrix-ray-local").exists()
    os.close(owner)
