"""The Prometheus endpoint: what all replicas, all nodes and the door itself count, on one page."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import NamedTuple

import aiohttp

from matrix.client.sessions import open_session
from matrix.serving.door.figures import Figures
from matrix.serving.door.page import Page, label
from matrix.serving.door.routes import replica_name, root_of
from matrix.serving.door.table import Table

TIMEOUT_S = 2.0
"""A replica that takes longer is left out of this page."""


class _Source(NamedTuple):
    url: str
    labels: dict[str, str]
    headers: dict[str, str]
    is_replica: bool


class Scraper:
    """Makes the page; has to be made in the event loop.

    Args:
        key: What replicas get as a bearer token; nodes don't.
        figures: What the door counts.
    """

    def __init__(self, key: str, figures: Figures) -> None:
        self._session = open_session()
        self._headers = {"Authorization": f"Bearer {key}"}
        self._figures = figures

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def page(self, table: Table, *, nodes: bool = True) -> bytes:
        """All that there is to tell now, in Prometheus' text format. What doesn't answer in time is told to be down.

        Args:
            table: Replicas and nodes.
            nodes: Also what the nodes tell; not for a Prometheus that reads them itself.
        """
        sources = [source for source in self._sources(table) if nodes or source.is_replica]
        texts = await asyncio.gather(*map(self._read, sources))
        page = Page()
        page.add(self._figures.page(), {})
        page.add(_state(table), {})
        page.add("\n".join(_up(sources, texts)), {})
        for source, text in zip(sources, texts, strict=True):
            if text is not None:
                page.add(text, source.labels, uniform=source.is_replica)
                # A page of thousands of lines takes milliseconds: requests may go on in between.
                await asyncio.sleep(0)
        return page.text().encode()

    def _sources(self, table: Table) -> Iterator[_Source]:
        for app in table.apps.values():
            for url in app.route.urls:
                labels = {"app": app.name, "replica": replica_name(url)}
                yield _Source(root_of(url) + "/metrics", labels, self._headers, is_replica=True)
        for node in table.nodes:
            yield _Source(node.metrics_url, {"node": node.name}, {}, is_replica=False)

    async def _read(self, source: _Source) -> str | None:
        try:
            async with (
                asyncio.timeout(TIMEOUT_S),
                self._session.get(source.url, headers=source.headers, allow_redirects=False) as reply,
            ):
                return await reply.text() if reply.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, UnicodeDecodeError):
            return None


def _state(table: Table) -> str:
    lines = [
        "# HELP matrix_door_requests_in_flight Requests waiting for a replica or under way.",
        "# TYPE matrix_door_requests_in_flight gauge",
        *(f"matrix_door_requests_in_flight{{{label('app', app.name)}}} {app.in_flight}" for app in table.apps.values()),
        "# HELP matrix_door_requests_waiting Requests waiting for a replica.",
        "# TYPE matrix_door_requests_waiting gauge",
        *(f"matrix_door_requests_waiting{{{label('app', app.name)}}} {app.waiting}" for app in table.apps.values()),
        "# HELP matrix_replicas Replicas that are ready.",
        "# TYPE matrix_replicas gauge",
        *(f"matrix_replicas{{{label('app', app.name)}}} {len(app.route.urls)}" for app in table.apps.values()),
    ]
    return "\n".join(lines)


def _up(sources: list[_Source], texts: list[str | None]) -> Iterator[str]:
    yield "# HELP matrix_scrape_up Whether the metrics of a replica or node could be read for this page."
    yield "# TYPE matrix_scrape_up gauge"
    for source, text in zip(sources, texts, strict=True):
        labels = ",".join(label(name, value) for name, value in source.labels.items())
        yield f"matrix_scrape_up{{{labels}}} {int(text is not None)}"
