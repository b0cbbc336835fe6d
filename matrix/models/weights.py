"""The files of a model folder: what has to be there, and checksums that are computed once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from matrix.models.base import Say, cache_dir, write_json

HASH_LIMIT_GB = 20.0
"""Larger folders get no checksum: reading them for it alone would cost minutes."""


@dataclass(frozen=True)
class FileRecord:
    """What a file was when it was hashed; it is the same file while size and time of change are the same."""

    size: int
    mtime_ns: int
    sha256: str


def weight_files(folder: Path) -> list[Path]:
    """The weights an engine loads from a folder, by name: `*.safetensors`, else `pytorch_model*.bin`."""
    return sorted(folder.glob("[!.]*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def folder_problem(folder: Path) -> str | None:
    """What keeps a folder from being a model in the Hugging Face layout, in one line; None if nothing does."""
    if not folder.exists():
        return f"there is no folder {folder}"
    if not folder.is_dir():
        return f"{folder} is a file; `python -m matrix.models.gguf FILE FOLDER` makes a folder of a GGUF file"
    if not (folder / "config.json").exists():
        return f"{folder} has no config.json: give the folder that save_pretrained or a download wrote"
    files = weight_files(folder)
    if not files:
        return f"{folder} has a config.json but no weights (*.safetensors or pytorch_model*.bin)"
    missing = sorted(_shards(folder, files[0].suffix) - {file.name for file in files if file.exists()})
    if missing:
        return f"{folder} lacks {len(missing)} of its weight files, such as {missing[0]}: copy or download it again"
    return None


def _shards(folder: Path, suffix: str) -> set[str]:
    indexes = folder.glob(f"[!.]*{suffix}.index.json")
    return {shard for index in indexes for shard in json.loads(index.read_text())["weight_map"].values()}


def sha256(path: Path) -> str:
    """The SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_record(path: Path, known: FileRecord | None = None) -> FileRecord:
    """The record of a file as it is now; reads it only when it isn't the file that `known` describes."""
    stat = path.stat()
    if known is not None and (known.size, known.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
        return known
    return FileRecord(stat.st_size, stat.st_mtime_ns, sha256(path))


def combined(files: Mapping[str, FileRecord]) -> str:
    """`sha256:` and the checksum of one file, or of what `sha256sum` prints for several, sorted by name."""
    if len(files) == 1:
        return f"sha256:{next(iter(files.values())).sha256}"
    listing = "".join(f"{files[name].sha256}  {name}\n" for name in sorted(files))
    return f"sha256:{hashlib.sha256(listing.encode()).hexdigest()}"


def checksum(folder: Path, say: Say) -> str | None:
    """The checksum of a folder's weights (see `combined`); None for a folder over `HASH_LIMIT_GB`.

    A file is read once: its checksum stays in the cache until the file's size or time of change differ.
    """
    weights = weight_files(folder)
    memo = cache_dir() / "checksums" / f"{hashlib.sha256(str(folder).encode()).hexdigest()[:24]}.json"
    known = read_records(memo) if memo.exists() else {}
    gigabytes = sum(file.stat().st_size for file in weights) / 1e9
    if gigabytes > HASH_LIMIT_GB:
        say(f"{folder}: {gigabytes:.0f} GB of weights go without a checksum (limit {HASH_LIMIT_GB:.0f} GB)")
        return None
    files = {file.name: file_record(file, known.get(file.name)) for file in weights}
    if files != known:
        # The memo only saves time: a cache that cannot be written must not stop a run.
        with suppress(OSError):
            memo.parent.mkdir(parents=True, exist_ok=True)
            write_json(memo, {"folder": str(folder), "files": as_json(files)})
    return combined(files)


def as_json(files: Mapping[str, FileRecord]) -> dict[str, dict[str, int | str]]:
    """Records in the form that `read_records` reads."""
    return {name: asdict(record) for name, record in files.items()}


def read_records(path: Path) -> dict[str, FileRecord]:
    """The records under `files` in a JSON file."""
    return {name: FileRecord(**record) for name, record in json.loads(path.read_text())["files"].items()}
