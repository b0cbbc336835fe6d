"""Which tests run in one process, one after another, and which come first, when pytest-xdist runs them side by side."""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parent
LONG = (TESTS / "integration", TESTS / "slurm")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(TESTS / "slurm"):
            item.add_marker("slurm")
        if item.get_closest_marker("slurm") or item.get_closest_marker("integration"):
            folder = next((folder for folder in LONG if item.path.is_relative_to(folder)), None)
            # What one starts is for all tests of the folder, or of the file.
            item.add_marker(pytest.mark.xdist_group(folder.name if folder else item.path.stem))
    # The long ones first: the short ones fill up what is left of each worker's time.
    items.sort(key=lambda item: not any(item.path.is_relative_to(folder) for folder in LONG))
