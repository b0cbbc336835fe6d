"""The file that `output=` names: written when the run is whole, and never over what somebody else wrote."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

from matrix.data.sorting import half_of
from matrix.errors import DataError, Problem

ENDINGS = ("jsonl", "parquet")
"""What `run.rows` may be."""


class Output:
    """The output of one run dir.

    The run dir remembers what its output looked like (size and time), so that the next start of the same run may write
    it anew, and nothing else.

    Args:
        path: The file.
        run_dir: The run dir.
    """

    def __init__(self, path: Path, run_dir: Path) -> None:
        self._path = path
        self._rows = run_dir / f"rows{path.suffix}"
        self._note = run_dir / "output.json"

    def check(self) -> list[Problem]:
        """What stands against writing it; looks only."""
        path = self._path
        if path.suffix.removeprefix(".") not in ENDINGS:
            return [Problem("output", path, "can't be told what to write", f"end it in .{' or .'.join(ENDINGS)}")]
        if path.suffix == ".parquet" and find_spec("pyarrow") is None:
            return [Problem("output", path, "needs pyarrow", "pip install 'matrix-llm[hub]', or end it in .jsonl")]
        if path.is_dir():
            return [Problem("output", path, "is a folder", "give a file in it")]
        if path.exists() and self._noted() != self._look():
            message = "is there already, and not from this run"
            return [Problem("output", path, message, "give another name, or move it away")]
        return []

    def write(self) -> None:
        """Give the file with all rows, which the run has written into its dir, the output's name, too.

        Raises:
            DataError: That can't be done; the rows stay in the run dir.
        """
        half = half_of(self._path)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            half.unlink(missing_ok=True)
            _link_or_copy(self._rows, half)
            half.replace(self._path)
            self._note.write_text(json.dumps(self._look()) + "\n")
        except OSError as error:
            raise DataError(f"output={self._path}: {error.strerror}; the rows are in {self._rows}") from error
        finally:
            half.unlink(missing_ok=True)

    def _look(self) -> dict[str, object]:
        found = self._path.stat()
        return {"path": str(self._path.resolve()), "size": found.st_size, "mtime_ns": found.st_mtime_ns}

    def _noted(self) -> object:
        try:
            return json.loads(self._note.read_text())
        except (OSError, ValueError):
            return None


def _link_or_copy(source: Path, target: Path) -> None:
    """A second name costs nothing; another file system, or one without such names, needs a copy."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
