"""A disk that gets full, for tests."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

DEVICE = "matrix-test"  # what stands in the list of mounts


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A tmpfs of that size (`64k`), mounted below a folder as long as the block runs."""
    disk = folder / "disk"
    disk.mkdir()
    try:
        done = _mount("-t", "tmpfs", "-o", f"size={size}", DEVICE, str(disk))
    except FileNotFoundError:
        pytest.skip("there is no mount command to make a small disk with")
    if done.returncode:
        pytest.skip(f"mounting a small tmpfs isn't allowed here: {done.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def resize(disk: Path, size: str) -> None:
    """Give it another size."""
    assert _mount("-o", f"remount,size={size}", str(disk)).returncode == 0


def _mount(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
