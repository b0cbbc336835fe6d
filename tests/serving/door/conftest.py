from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.serving.door.doors import Client, open_door


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with open_door() as client:
        yield client
