"""The smallest folder that passes for a model: for engines that are played, which read no weights."""

from __future__ import annotations

import struct
from pathlib import Path


def make_weights(folder: Path) -> Path:
    """Write a folder in the Hugging Face layout with a safetensors file of no tensors (an 8-byte length, then JSON)."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    return folder
