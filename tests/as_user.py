"""Run a module of the tests as an ordinary user, without capabilities, for tests that are root."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from matrix.sandbox.jail import Bind, _stage
from tests.checkout import ROOT

USER = 12345
needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="whoever runs this is a user already, as whom all other tests run"
)
# Folders that a user may not get through are covered, and what is needed of them is put there again.
_SCRIPT = """
set -e
mount -t tmpfs tmpfs "$STAGE"
count=0
for needed in "$@"; do
    case "$needed" in /usr/*) continue;; esac
    [ "$needed" = -- ] && break
    count=$((count + 1)); mkdir -p "$STAGE/$count"; mount --bind "$needed" "$STAGE/$count"
done
for closed in $CLOSED; do mount -t tmpfs -o mode=755 tmpfs "$closed"; done
count=0
while [ "$1" != -- ]; do
    case "$1" in /usr/*) shift; continue;; esac
    count=$((count + 1)); mkdir -p "$1"; mount --bind "$STAGE/$count" "$1"; shift
done
shift
exec setpriv --reuid=$USER_ID --regid=$USER_ID --clear-groups --inh-caps=-all "$@"
"""


def run_as_user(module: str, *arguments: str, folders: tuple[Path, ...] = (), tmp: Path | None = None) -> str:
    """Run `python -m module arguments`, which has to succeed; returns what it prints.

    Args:
        module: Its name.
        arguments: Of its command line.
        tmp: Its TMPDIR.
        folders: What it sees beside the checkout and Python; nothing else below the first part of their paths.
    """
    needed = [sys.base_prefix, sys.prefix, str(ROOT), *map(str, folders)]
    closed = {str(Path(*Path(path).parts[:2])) for path in needed if not path.startswith("/usr")}
    # Not below what is covered, where this checkout may lie: in /tmp, say.
    stage = _stage([Bind(path, path) for path in needed])
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": "/nonexistent",
        "STAGE": stage,
        "CLOSED": " ".join(sorted(closed)),
        "USER_ID": str(USER),
    } | ({} if tmp is None else {"TMPDIR": str(tmp)})
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _SCRIPT, "sh", *needed, "--"]
    done = subprocess.run(
        [*command, sys.executable, "-m", module, *arguments],
        check=False, capture_output=True, text=True, env=environment, cwd="/",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
