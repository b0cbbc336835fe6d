from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from matrix.client.tries import from_status, seconds

QUOTA = b'{"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}'


@pytest.mark.parametrize(
    ("status", "headers", "raw", "verdict"),
    [
        (429, {}, b"", "crowd"),
        (429, {"Retry-After": "3"}, b"", "crowd"),
        (503, {"Retry-After": "3"}, b"", "crowd"),
        (503, {}, b"", "fault"),
        (500, {}, b"", "fault"),
        (502, {"Retry-After": "3"}, b"", "fault"),
        (504, {}, b"", "fault"),
        (408, {}, b"", "fault"),
        (429, {}, QUOTA, "refusal"),
        (400, {}, b"", "refusal"),
        (401, {}, b"", "refusal"),
        (302, {"Location": "/"}, b"", "refusal"),
    ],
)
def test_what_a_status_means(status: int, headers: dict[str, str], raw: bytes, verdict: str) -> None:
    failure = from_status("http://a/v1", status, "Because", headers, raw)
    assert (failure.kind, failure.verdict) == (f"http_{status}", verdict)
    assert str(failure).startswith(f"http://a/v1: HTTP {status} Because: ")


def test_retry_after_has_two_forms() -> None:
    assert seconds("2") == 2
    assert seconds("0.5") == 0.5
    assert seconds(None) == seconds("soon") == seconds("-3") == seconds("nan") == 0
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert 55 < seconds(soon) <= 60
    assert seconds(format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True)) == 0


def test_retry_after_has_an_end() -> None:
    assert seconds("inf") == seconds("1e12") == 3600
