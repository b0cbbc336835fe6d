"""The file that `output=` names: written when the run is whole, and never over what somebody else wrote."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

from matrix.data.sorting import write_sorted
from matrix.errors import DataError, Problem

_ENDINGS = (".jsonl", ".parquet")


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
        self._rows = run_dir / "rows"
        self._note = run_dir / "output.json"

    def check(self) -> list[Problem]:
        """What stands against writing it; looks only."""
        path = self._path
        if path.suffix not in _ENDINGS:
            return [Problem("output", path, "can't be told what to write", f"end it in {' or '.join(_ENDINGS)}")]
        if path.suffix == ".parquet" and find_spec("pyarrow") is None:
            return [Problem("output", path, "needs pyarrow", "pip install 'matrix-llm[hub]', or end it in .jsonl")]
        if path.is_dir():
            return [Problem("output", path, "is a folder", "give a file in it")]
        if path.exists() and self._noted() != self._look():
            message = "is there already, and not from this run"
            return [Problem("output", path, message, "give another name, or move it away")]
        return []

    def write(self) -> int:
        """Write the rows of the run dir; returns how many.

        Raises:
            DataError: It can't be written; the rows stay in the run dir.
        """
        count = write_sorted(self._rows, self._path)
        try:
            self._note.write_text(json.dumps(self._look()) + "\n")
        except OSError as error:
            raise DataError(f"{self._note}: {error.strerror}") from error
        return count

    def _look(self) -> dict[str, object]:
        found = self._path.stat()
        return {"path": str(self._path.resolve()), "size": found.st_size, "mtime_ns": found.st_mtime_ns}

    def _noted(self) -> object:
        try:
            return json.loads(self._note.read_text())
        except (OSError, ValueError):
            return None
