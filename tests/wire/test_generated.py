"""The committed files are what protoc makes of the .proto."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.checkout import ROOT

PROTO = "matrix/wire/openai.proto"
COMMAND = "python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. " + PROTO


def test_the_generated_files_are_those_of_the_proto(tmp_path: Path) -> None:
    assert COMMAND in (ROOT / PROTO).read_text()
    outputs = [part.replace("=.", f"={tmp_path}") for part in COMMAND.split()[1:]]
    subprocess.run([sys.executable, *outputs], cwd=ROOT, check=True)
    for name in ("openai_pb2.py", "openai_pb2.pyi", "openai_pb2_grpc.py"):
        made = (tmp_path / "matrix/wire" / name).read_text()
        assert made == (ROOT / "matrix/wire" / name).read_text(), f"{name}: run {COMMAND}"
