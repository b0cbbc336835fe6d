"""A whole team at work in this process: its roles in a file, its model `tests/fake_engine.py` or nobody."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

from matrix.agents.attempts import PastAttempts
from matrix.agents.team import Team
from matrix.compose import compose_spec
from matrix.data.journal import Journal
from matrix.data.parts import decode_row, done_keys, part_files
from matrix.data.rows import AgentRow, Example, Row
from matrix.data.work import Work
from matrix.run.session import Served
from matrix.run.workload import Workload
from matrix.spec import RunSpec
from tests.command import ROOT, environment

NOBODY = "http://127.0.0.1:9/v1"
HEAD = """
import asyncio, os, signal, time
from pathlib import Path
from matrix.agents import END, Role, State, Tools, Turn
"""


def team_file(folder: Path, code: str) -> Path:
    """A file with a team's roles."""
    file = folder / "team.py"
    file.write_text(HEAD + textwrap.dedent(code))
    return file


def team_spec(
    file: Path | None,
    workload: Mapping[str, Any] | None = None,
    seed: int = 0,
    price: Any = None,
    apps: Mapping[str, Any] | None = None,
    **agents: Any,
) -> RunSpec:
    """The spec of a run of such a team."""
    fields = _default()
    return RunSpec.model_validate(
        {
            **fields,
            "pipeline": None,
            "seed": seed,
            "apps": {**fields["apps"], **(apps or {})},
            "agents": {"name": "tested", "file": None if file is None else str(file), **agents},
            "workload": {**fields["workload"], **(workload or {})},
            "model": {**fields["model"], "price": price or fields["model"]["price"]},
        }
    )


@cache
def _default() -> dict[str, Any]:
    return compose_spec(["tracker=none", "engine=openai", "engine.api_key_env=null"]).model_dump()


def work(*columns: dict[str, Any], trials: int = 1) -> list[Work]:
    """Rows with these columns."""
    examples = [Example(str(index), index, one) for index, one in enumerate(columns)]
    return [Work(example, trial) for example in examples for trial in range(trials)]


@asynccontextmanager
async def opened(
    spec: RunSpec, folder: Path, url: str = NOBODY, writer: str = "driver", apps: Mapping[str, str] | None = None
) -> AsyncIterator[Team]:
    """A team that is ready, with `folder` as its run dir; its rows are in `written(folder)`. `apps`: URLs of others."""
    with Journal(folder / "rows", writer) as journal:
        served = {name: Served([(apps or {}).get(name, url)], None, 0.0, 0.0) for name in spec.asked_apps}
        workload = Workload(spec, served, journal.append, run_dir=folder, writer=writer, actors={})
        async with workload:
            assert isinstance(workload.pipeline, Team)
            yield workload.pipeline


async def run(
    spec: RunSpec, folder: Path, rows: Iterable[Work], url: str = NOBODY, apps: Mapping[str, str] | None = None
) -> list[AgentRow]:
    """Work rows through, or go on with that; returns all of the folder, in order."""
    done = done_keys(folder / "rows")
    past = PastAttempts(folder / "steps", spec.workload.max_attempts, done)
    async with opened(spec, folder, url, apps=apps) as team:
        await team.run(map(past.resumed, (one for one in rows if one.key not in done)))
    return written(folder)


async def run_one(spec: RunSpec, folder: Path, url: str = NOBODY, **columns: Any) -> AgentRow:
    """Work one row through."""
    (row,) = await run(spec, folder, work(columns), url)
    return row


def written(folder: Path) -> list[AgentRow]:
    """The rows of a folder, in order."""
    rows: list[Row] = [decode_row(line) for part in part_files(folder / "rows") for line in part.open("rb")]
    found = [row for row in rows if isinstance(row, AgentRow)]
    assert len(found) == len(rows) == len({row.key for row in rows})
    return sorted(found, key=lambda row: row.key)


def in_process(code: str, *arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, which may end as it likes."""
    command = [sys.executable, "-c", inspect.cleandoc(code), *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=timeout_s, check=False
    )


def texts(row: AgentRow) -> list[tuple[str, str]]:
    """Who said what."""
    return [(entry.agent, entry.text) for entry in row.history]


SIGKILL = -9
assert os.name == "posix"
