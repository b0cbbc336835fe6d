"""Joining a cluster that isn't there is refused at once."""

from __future__ import annotations

import socket
import time

import pytest

from matrix import Cli
from matrix.errors import ClusterError


def test_an_address_where_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = time.monotonic()
    with Cli(f"127.0.0.1:{port}") as cli, pytest.raises(ClusterError, match=rf"127.0.0.1:{port}.*refused"):
        cli.get_app_metadata("any")
    assert time.monotonic() - started < 5


def test_a_token_file_that_is_not_there() -> None:
    with Cli("127.0.0.1:1", "nowhere") as cli, pytest.raises(ClusterError, match="token_path=nowhere: no such file"):
        cli.get_app_metadata("any")
