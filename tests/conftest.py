"""Which tests run in one process, one after another, and which come first, when pytest-xdist runs them side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler.loadscope import LoadScopeScheduling

TESTS = Path(__file__).parent
# A time limit for an example says something about the machine, not about what is tested.
settings.register_profile("matrix", deadline=None)
settings.load_profile("matrix")
LONG = ("tests/integration/", "tests/slurm/")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(TESTS / "slurm"):
            item.add_marker("slurm")
    # The long queues first: what is short fills up the rest of each worker's time.
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))


class Queues(LoadScopeScheduling):  # type: ignore[misc]
    """A queue for each of the long folders, whose tests share what they start; else one for each file."""

    def _split_scope(self, nodeid: str) -> str:
        return next((folder for folder in LONG if nodeid.startswith(folder)), nodeid.partition("::")[0])


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    # Else it takes the queue with the most tests first.
    config.option.loadscopereorder = False
    return Queues(config, log)
