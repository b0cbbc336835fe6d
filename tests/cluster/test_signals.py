from __future__ import annotations

import signal
from typing import Any

import pytest

from matrix.cluster import ray as cluster
from matrix.errors import ClusterError


def takes_sigterm(**_: Any) -> None:
    """What `ray.init` does beside its work."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@pytest.mark.parametrize("fails", [False, True])
def test_signals_are_handled_as_before_once_ray_is_joined(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    def init(**options: Any) -> None:
        takes_sigterm(**options)
        if fails:
            raise ConnectionError("nobody there")

    def ours(*_: object) -> None:
        """A handler."""

    monkeypatch.setattr("ray.init", init)
    before = signal.signal(signal.SIGTERM, ours)
    try:
        if fails:
            with pytest.raises(ClusterError, match="cannot join: nobody there"):
                cluster._init("join")
        else:
            cluster._init("join")
        assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_handler_that_python_did_not_set_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.init", lambda **_: None)
    monkeypatch.setattr(signal, "getsignal", lambda _: None)
    cluster._init("join")
