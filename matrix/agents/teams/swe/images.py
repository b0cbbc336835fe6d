"""The images of SWE-bench's instances as files for apptainer."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from matrix.data.readers import BadRow
from matrix.data.rows import Example
from matrix.errors import AppError, DataError
from matrix.pipelines.prompt import Template

IMAGE = "docker.io/swebench/sweb.eval.x86_64.{{ instance_id | replace('__', '_1776_') | lower }}:latest"
"""A row's image as SWE-bench publishes it (swebench/harness/test_spec), where `__` can't stand in a name."""


class Conversion(NamedTuple):
    """An image, and the file that is made of it.

    Attributes:
        image: As a registry knows it.
        file: The file.
    """

    image: str
    file: Path

    @property
    def partial(self) -> Path:
        """Where the file is made: under its own name it is whole."""
        return self.file.with_name(f".{self.file.name}.part")

    @property
    def command(self) -> list[str]:
        """What makes it; apptainer keeps no second copy of its layers."""
        return ["apptainer", "pull", "--force", "--disable-cache", str(self.partial), f"docker://{self.image}"]


def conversions(rows: Iterable[Example | BadRow], image: Template, folder: Path) -> Iterator[Conversion]:
    """What is to be made for rows of a data set: a file `ID.sif` for each.

    Raises:
        DataError: A row can't be read, lacks what the template asks for, or has no name for a file.
    """
    for row in rows:
        if isinstance(row, BadRow):
            raise DataError(str(row))
        if Path(row.id).name != row.id:
            raise DataError(f"row {row.id!r} can't be the name of a file: set dataset.id_key")
        yield Conversion(image.render(row), folder / f"{row.id}.sif")


def convert(wanted: Sequence[Conversion], *, tries: int, pause_s: float, say: Callable[[str], None]) -> list[str]:
    """Make the files that aren't there, one after another: a registry limits how often it is asked.

    Args:
        wanted: What to make.
        tries: Of each image.
        pause_s: Seconds before another try.
        say: Told how it goes.

    Returns:
        Names of the files that couldn't be made.

    Raises:
        AppError: There is no apptainer.
    """
    if shutil.which("apptainer") is None:
        raise AppError("this machine has no apptainer: https://apptainer.org/docs/admin/main/installation.html")
    failed = []
    for number, one in enumerate(wanted, start=1):
        if one.file.is_file():
            continue
        say(f"{number}/{len(wanted)} {one.file.name}: {one.image}")
        one.file.parent.mkdir(parents=True, exist_ok=True)
        for again in range(tries):
            if again:
                say(f"  once more in {pause_s:g} s")
                time.sleep(pause_s)
            if subprocess.run(one.command, check=False).returncode == 0:
                one.partial.rename(one.file)
                break
        else:
            one.partial.unlink(missing_ok=True)
            failed.append(one.file.name)
    return failed
