"""`serving.py deploy`: seconds until an app with vLLM is healthy, against vLLM's own server.

- vllm serve: the command line and the environment of the replica's engine (`matrix.apps.vllm`), from its start to the
  first 200 of /health;
- deploy, from nothing: `matrix deploy_applications model=smollm2` without a cluster: Ray and Serve are started too;
- deploy, cluster up: the same after the app was removed, with Ray, Serve and the front door as they are.

A deploy counts from the start of the command to its exit, with the imports of Python before and what it does once the app
is healthy. The other columns say where the time goes: until the engine is being started, until the app is known to be
healthy. What vLLM reads from disk is read once before the first round.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from kept import ROOT, Kept
from processes import say
from tables import Runs, ratio, show

from matrix.apps import vllm
from matrix.apps.launch import HOST, PORT
from matrix.apps.process import free_port
from matrix.compose import compose_spec
from matrix.models.source import resolve
from matrix.spec import VllmEngine

OVERRIDES = ("model=smollm2",)
COLUMNS = {
    "loading_s": ("engine is started", ".1f"),
    "healthy_s": ("healthy, s", ".1f"),
    "seconds": ("in all, s", ".1f"),
}
SERVE, COLD, WARM = "vllm serve", "deploy, from nothing", "deploy, cluster up"
_WAIT_S = 600.0


def measure(repeat: int, scale: float) -> Runs:  # noqa: ARG001 - a start is a start
    """Measure all three in turns, and print a table."""
    runs: Runs = {}
    warm_up()
    for number in range(repeat):
        order = (serve, deploy) if number % 2 == 0 else (deploy, serve)
        for contender in order:
            for name, figures in contender().items():
                say(f"{number + 1}/{repeat} {name}: {figures}")
                runs.setdefault(name, []).append(figures)
    show("seconds until model=smollm2 is healthy", COLUMNS, runs)
    for name in (WARM, COLD):
        more = [ours["seconds"] - theirs["seconds"] for ours, theirs in zip(runs[name], runs[SERVE], strict=True)]
        print(f"{name}: {min(more):.1f} to {max(more):.1f} s more than {SERVE}; {ratio(runs[name], runs[SERVE], 'seconds')}")
    return runs


def serve() -> Runs:
    """vLLM's own server."""
