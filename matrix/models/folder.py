"""A model that is already there: a folder in the Hugging Face layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from matrix.models.base import ResolvedModel, Say
from matrix.models.weights import checksum, folder_problem


@dataclass(frozen=True)
class FolderSource:
    """A folder with `config.json` and weights.

    Attributes:
        origin: The source as given.
        path: The folder, absolute.
    """

    origin: str
    path: Path

    def problem(self) -> str | None:
        """What is wrong with the source, in one line; None if nothing is."""
        return folder_problem(self.path)

    def resolve(self, say: Say) -> ResolvedModel:
        """The folder itself and the checksum of its weights."""
        return ResolvedModel(str(self.path), None, checksum(self.path, say), self.origin)
