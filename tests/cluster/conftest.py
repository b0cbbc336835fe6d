"""Slurm's jobs without Slurm."""

from __future__ import annotations

import pytest

from tests.cluster.fake_jobs import FakeJobs


@pytest.fixture
def fake_jobs(monkeypatch: pytest.MonkeyPatch) -> FakeJobs:
    return FakeJobs(monkeypatch)
