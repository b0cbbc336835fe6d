"""The wheel: what is in it, and that it works in a venv of its own, away from the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from tests.checkout import ROOT, files


def pip(*arguments: str | Path) -> None:
    """Run this environment's pip without an index: hatchling, which builds, is in requirements.lock."""
    command = [sys.executable, "-I", "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, since builds leave things behind, with what must never be packed lying in it."""
    copy = tmp_path_factory.mktemp("source")
    for path in files():
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, copy / path)
    for stray in ("outputs/a/rows.jsonl", ".venv/pyvenv.cfg", ".cache/model.bin", "matrix/__pycache__/x.pyc"):
        (copy / stray).parent.mkdir(parents=True, exist_ok=True)
        (copy / stray).write_text("stray")
    return copy


def build_wheel(source: Path, to: Path) -> Path:
    pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", to, source)
    (wheel,) = to.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def venv(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A venv with the wheel, and this environment's packages in place of its dependencies."""
    venv = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    pip("--python", venv / "bin" / "python", "install", "--no-deps", "--no-index", wheel)
    # What lies behind a path in a .pth file is importable, but the .pth files there, the editable install, don't count.
    (site_packages,) = venv.glob("lib/python*/site-packages")
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return venv


def run(command: list[str | Path], folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MATRIX_"))}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_the_package_and_its_config_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    of_package = {path.as_posix() for path in files() if path.parts[0] == "matrix"}
    of_config = {f"matrix/{path.as_posix()}" for path in files() if path.parts[0] == "conf"}
    assert {"matrix/__init__.py", "matrix/py.typed", "matrix/cluster/dashboards/cluster.json"} <= of_package
    assert "matrix/conf/config.yaml" in of_config
    assert any(PurePosixPath(name).match("matrix/conf/model/*.yaml") for name in of_config)
    assert {name for name in names if ".dist-info/" not in name} == of_package | of_config
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_sdist_builds_the_same_wheel(source: Path, wheel: Path, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path],
        cwd=source,
        check=True,
        capture_output=True,
    )
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = [PurePosixPath(*PurePosixPath(name).parts[1:]) for name in archive.getnames()]
    assert PurePosixPath("run.py") in names
    assert not {".venv", ".cache", "outputs", ".git"} & {name.parts[0] for name in names}
    again = build_wheel(sdist, tmp_path / "again")
    assert set(zipfile.ZipFile(again).namelist()) == set(zipfile.ZipFile(wheel).namelist())


def test_the_installed_package_is_the_wheel_s(venv: Path, tmp_path: Path) -> None:
    found = run([venv / "bin" / "python", "-c", "import matrix; print(matrix.__file__)"], tmp_path)
    assert Path(found.strip()).is_relative_to(venv)


def test_the_console_script_helps(venv: Path, tmp_path: Path) -> None:
    assert "matrix run" in run([venv / "bin" / "matrix", "--help"], tmp_path)


def test_the_console_script_composes_the_packed_config(venv: Path, tmp_path: Path) -> None:
    composed = run([venv / "bin" / "matrix", "run", "--cfg", "job"], tmp_path)
    assert "\nmodel:\n" in composed
    assert not list(tmp_path.iterdir())
