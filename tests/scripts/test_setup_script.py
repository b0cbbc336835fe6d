"""scripts/setup.py: what it decides and says, and a real set-up with a small lock, killed and done again."""

from __future__ import annotations

import ast
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from tests.checkout import ROOT

SCRIPT = ROOT / "scripts" / "setup.py"

# `requires_dist` of torch 2.13.0 in pip 26.3's reports, shortened: of the wheel of the default index, of the CPU build.
CUDA = [
    "filelock",
    'cuda-toolkit[cublas,cudart]==13.0.3; platform_system == "Linux"',
    'nvidia-cudnn-cu13==9.20.0.48; platform_system == "Linux"',
    'triton==3.7.1; platform_system == "Linux" and python_version < "3.15"',
]
CPU = ["filelock", "typing-extensions>=4.10.0", "sympy>=1.13.3", 'optree>=0.13.0; extra == "optree"']

NO_NETWORK = """\
Looking in indexes: http://127.0.0.1:9/simple
WARNING: Retrying (Retry(total=0, connect=None, read=None, redirect=None, status=None)) after connection broken by \
'NewConnectionError("HTTPConnection(host='127.0.0.1', port=9): Failed to establish a new connection: [Errno 111] \
Connection refused")': /simple/orjson/
ERROR: Could not find a version that satisfies the requirement orjson==3.13.0 (from versions: none)
ERROR: No matching distribution found for orjson==3.13.0
"""


@pytest.fixture
def setup(tmp_path: Path) -> ModuleType:
    """The script as a module, of a checkout of its own."""
    script = tmp_path / "scripts" / "setup.py"
    script.parent.mkdir()
    shutil.copy(SCRIPT, script)
    spec = importlib.util.spec_from_file_location("matrix_setup", script)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.LOCK.write_text("orjson==3.13.0\ntorch==2.13.0\n")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    return module


def report(requires_dist: list[str] | None) -> dict:
    metadata = {"name": "torch", "version": "2.13.0"} | ({"requires_dist": requires_dist} if requires_dist else {})
    return {"version": "1", "pip_version": "26.3", "install": [{"is_direct": False, "metadata": metadata}]}


@pytest.mark.parametrize(("requires_dist", "cuda"), [(CUDA, True), (CPU, False), (None, False)])
def test_the_cuda_build_is_told_by_what_it_requires(setup, requires_dist, cuda):
    assert setup.needs_cuda(report(requires_dist)) is cuda


@pytest.mark.parametrize(
    ("lock", "requirement"),
    [
        ("pytorch==1.0\ntorch==2.13.0\n", "torch==2.13.0"),
        ("torch==2.13.0 ; sys_platform == 'linux'\n", "torch==2.13.0"),
        ("torch==2.13.0+cpu\n", "torch==2.13.0"),
        ("torchmetrics==1.0\n", ""),
    ],
)
def test_the_lock_names_torch(setup, lock, requirement):
    assert setup.torch_requirement(lock) == requirement


@pytest.mark.parametrize(
    ("log", "hint"),
    [
        (NO_NETWORK, "can't reach its package index"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
        ("ERROR: No matching distribution found for numba==0.65.0", "no such package for this Python"),
    ],
)
def test_a_failure_names_its_cause_and_where_to_read_on(setup, log, hint):
    message = str(setup.failure(log))
    assert log.splitlines()[-1] in message
    assert str(setup.LOG) in message
    assert hint in message.splitlines()[-1]


def test_a_venv_counts_as_touched_from_the_install_on(setup):
    setup.VENV.mkdir()
    setup.BUSY.touch()
    setup.failure("Collecting a\nInstalling collected packages: a\nERROR: OSError: [Errno 28]")
    assert setup.BUSY.exists()
    setup.failure(NO_NETWORK)
    assert not setup.BUSY.exists()


def test_progress_is_read_from_pip_and_the_venv(setup):
    log = "Requirement already satisfied: a==1\nCollecting b==1\n  Downloading b.whl\nCollecting c==1\n"
    assert setup.progress(log, 4) == "fetched 3 of 4 packages"
    (setup.VENV / "lib" / "python3.11" / "site-packages" / "a-1.dist-info").mkdir(parents=True)
    assert setup.progress(f"{log}Installing collected packages: b, c\n", 4) == "installed 1 of 4 packages"


def test_the_stamp_holds_until_the_lock_the_project_or_the_place_changes(setup):
    (setup.VENV / "bin").mkdir(parents=True)
    setup.PYTHON.symlink_to(sys.executable)
    assert not setup.up_to_date()
    setup.STAMP.write_text("\n".join(setup.wanted()) + "\n")
    assert setup.up_to_date()

    packages, project = setup.wanted()
    (setup.ROOT / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert setup.wanted()[0] == packages
    assert setup.wanted()[1] != project
    assert not setup.up_to_date()

    setup.STAMP.write_text("\n".join(setup.wanted()) + "\n")
    setup.LOCK.write_text("orjson==3.13.1\n")
    assert setup.wanted()[0] != packages
    assert not setup.up_to_date()


def test_a_python_that_is_gone_or_not_the_one_asked_for_is_a_flaw(setup, monkeypatch):
    monkeypatch.delenv("PYTHON", raising=False)
    assert setup.flaw() == "there is none yet"
    (setup.VENV / "bin").mkdir(parents=True)
    setup.PYTHON.symlink_to("/nowhere/python")
    assert setup.flaw() == "its Python is gone"
    setup.PYTHON.unlink()
    setup.PYTHON.symlink_to(sys.executable)
    assert setup.flaw() == ""
    monkeypatch.setenv("PYTHON", sys.executable)
    assert setup.flaw() == "it has another Python"
    (setup.VENV / "lib" / f"python{setup.python_version()}").mkdir(parents=True)
    assert setup.flaw() == ""
    setup.BUSY.touch()
    assert setup.flaw() == "the last set-up did not finish"


def as_old_python(path: Path, python: str = "") -> subprocess.CompletedProcess[str]:
    """Run the script as Python 3.6 would, were it one: with its version, and with `path` as the PATH."""
    code = "import runpy, sys; sys.version_info = (3, 6, 8); sys.argv.pop(0); runpy.run_path(sys.argv[0])"
    environment = {"PATH": str(path), "PYTHON": python}
    return subprocess.run(
        [sys.executable, "-c", code, SCRIPT], env=environment, capture_output=True, text=True, check=False
    )


def test_an_old_python_can_read_the_script():
    ast.parse(SCRIPT.read_text(), feature_version=(3, 6))


def test_an_old_python_says_so(tmp_path):
    done = as_old_python(tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("matrix needs Python 3.11 to 3.14; this is Python 3.6 (")


def test_an_old_python_hands_over_to_a_newer_one(tmp_path):
    for name, works in (("python3.13", False), ("python3.12", True)):
        # A shim of pyenv for a version that is not chosen fails.
        (tmp_path / name).write_text(f'#!/bin/sh\n[ "$1" = -c ] && exit {0 if works else 127}\necho "{name}: $1"\n')
        (tmp_path / name).chmod(0o755)
    done = as_old_python(tmp_path)
    assert done.returncode == 0
    assert f"taking {tmp_path / 'python3.12'}\npython3.12: {SCRIPT}\n" in done.stdout


def test_an_old_python_that_was_asked_for_is_refused(tmp_path):
    (tmp_path / "python3.12").write_text("#!/bin/sh\nexit 0\n")
    (tmp_path / "python3.12").chmod(0o755)
    assert as_old_python(tmp_path, python="python3").returncode == 1


# What builds matrix, at the versions of the lock.
SMALL_LOCK = ("hatchling", "packaging", "pathspec", "pluggy", "trove-classifiers")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small checkout: the real script, pyproject.toml and package, and a lock of a few small packages."""
    for name in ("scripts/setup.py", "pyproject.toml", "README.md", "LICENSE", "matrix/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    lock = (ROOT / "requirements.lock").read_text().splitlines(keepends=True)
    (tmp_path / "requirements.lock").write_text("".join(line for line in lock if line.split("==")[0] in SMALL_LOCK))
    return tmp_path


def set_up(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": "", **environment}
    command = [sys.executable, "scripts/setup.py"]
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.integration
def test_a_set_up_that_was_killed_is_done_again_and_then_holds(checkout, tmp_path_factory):
    killed = subprocess.Popen([sys.executable, "scripts/setup.py"], cwd=checkout, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (checkout / ".venv" / ".matrix-setup-busy").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()

    again = set_up(checkout)
    assert again.returncode == 0, again.stderr
    assert "creating .venv with Python" in again.stdout
    assert "(the last set-up did not finish)" in again.stdout
    assert "set up in" in again.stdout

    elsewhere = tmp_path_factory.mktemp("elsewhere")
    ask = [checkout / ".venv" / "bin" / "python", "-I", "-c", "import matrix; print(matrix.__file__)"]
    found = subprocess.run(ask, cwd=elsewhere, capture_output=True, text=True, check=True).stdout
    assert Path(found.strip()) == checkout / "matrix" / "__init__.py"
    assert not list((checkout / ".venv").glob("lib/python*/site-packages/matrix"))

    started = time.monotonic()
    third = set_up(checkout)
    assert (third.returncode, third.stdout, third.stderr) == (0, "", "")
    assert time.monotonic() - started < 5

    # A new lock that can't be fetched: said, and what was there is as it was.
    lock = checkout / "requirements.lock"
    good = lock.read_text()
    lock.write_text(good + "orjson==3.11.5\n")
    offline = set_up(checkout, PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_RETRIES="1")
    assert offline.returncode == 1
    assert "can't reach its package index" in offline.stderr
    lock.write_text(good)
    assert set_up(checkout).stdout == ""
