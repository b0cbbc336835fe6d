"""A real Slurm for the tests of this folder, and a user on its login node for each."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.login import Login
from tests.slurm.machine import Slurm

PROGRAMS = ("slurmctld", "slurmd", "slurmdbd", "sbatch", "munged", "mariadbd", "mariadb-install-db", "ip", "nsenter")


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
        pytest.skip(f"Slurm's tests need {', '.join(missing)} (.ci/run lists the packages)")
    if os.geteuid() != 0:
        pytest.skip("Slurm's tests need root")
    if subprocess.run(["unshare", "--net", "--pid", "--fork", "true"], capture_output=True, check=False).returncode:
        pytest.skip("Slurm's tests need namespaces, which this machine doesn't give")
    # Not pytest's own temporary folder: the path of a Unix socket has at most 107 characters.
    slurm = Slurm(Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp")))
    with slurm.running():
        yield slurm


@pytest.fixture
def login(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[Login]:
    # Also for what a test calls in this process.
    monkeypatch.setenv("SLURM_CONF", str(slurm.conf))
    with Login.until_the_end(slurm) as login:
        yield login
