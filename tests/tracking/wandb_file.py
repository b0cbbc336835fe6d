"""Reads back what wandb wrote to a `run-ID.wandb` file, so that tests assert on the log and not on calls.

The file is a LevelDB log (https://github.com/google/leveldb/blob/main/doc/log_format.md) with two differences: 7 bytes
of magic in front, which count as part of the first block, and a plain CRC-32 over type and data. Each entry is one
`wandb.proto.wandb_internal_pb2.Record`.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK = 32 * 1024
MAGIC = b":W&B"
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class LoggedRun:
    """What one file says of its run."""

    run_id: str = ""
    name: str = ""
    project: str = ""
    group: str = ""
    job_type: str = ""
    notes: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, str] = field(default_factory=dict)
    """x axis by metric (a name or a glob)."""
    artifacts: dict[str, str] = field(default_factory=dict)
    """Type by artifact name."""
    exit_code: int | None = None
    """None: the run was never closed."""


def entries(path: Path) -> Iterator[bytes]:
    """Yields the payload of each entry, put together from its fragments.

    Raises:
        AssertionError: The file isn't a wandb log, or a checksum is wrong.
    """
    data = path.read_bytes()
    assert data[:4] == MAGIC, f"{path} is not a wandb log"
    position, parts = 7, []
    while position + 7 <= len(data):
        room = BLOCK - position % BLOCK
        if room < 7:
            position += room
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, position)
        payload = data[position + 7 : position + 7 + length]
        assert zlib.crc32(bytes([kind]) + payload) == checksum, f"bad checksum at byte {position} of {path}"
        position += 7 + length
        parts.append(payload)
        if kind in (FULL, LAST):
            yield b"".join(parts)
            parts = []


def read(path: Path) -> LoggedRun:
    """Replays a `.wandb` file."""
    from wandb.proto.wandb_internal_pb2 import Record

    logged = LoggedRun()
    for payload in entries(path):
        record = Record.FromString(payload)
        _apply(record, logged)
    return logged


def _apply(record: Any, logged: LoggedRun) -> None:
    match record.WhichOneof("record_type"):
        case "run":
            run = record.run
            logged.run_id, logged.name, logged.project = run.run_id, run.display_name, run.project
            logged.group, logged.job_type, logged.notes = run.run_group, run.job_type, run.notes
            logged.tags = list(run.tags)
            logged.config.update(_items(run.config.update))
        case "config":
            logged.config.update(_items(record.config.update))
        case "history":
            logged.history.append(_items(record.history.item))
        case "summary":
            logged.summary.update(_items(record.summary.update))
        case "metric":
            metric = record.metric
            logged.metrics[metric.name or metric.glob_name] = metric.step_metric
        case "artifact":
            logged.artifacts[record.artifact.name] = record.artifact.type
        case "exit":
            logged.exit_code = record.exit.exit_code


def _items(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
