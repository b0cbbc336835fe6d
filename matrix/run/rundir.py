"""The run dir: everything that a run leaves, and what tells whether it may go on.

- `spec.yaml`: the resolved spec, secrets redacted
- `state.json`: how far it is, with a heartbeat
- `env.json`: code, packages, model, data and command line that made it
- `rows/`: the row journal, one part file per writer, appended to while the run goes
- `rows.jsonl` (or `rows.parquet`): all rows in input order, written when the run ends
- `steps/`: what calls of a team's rows that aren't finished gave; gone at the end
- `agents.py`: the team's own file
- `metrics.jsonl`: progress over time
- `summary.json`: scores and totals
- `run.log`: what happened, tracebacks included; `engine-*.log`: the engines' own words
"""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import yaml

from matrix.agents.load import KEPT_FILE
from matrix.errors import ConfigError, DataError, Problem
from matrix.spec import RunSpec
from matrix.spec.redact import redact

# What may differ when a run dir is given again: it doesn't change what a row says.
_FREE = ("cluster", "name", "run", "tracker", "workload", "apps", "plan")
_OTHER_SPEC = "give the old value, another run.dir, or remove it"
_OTHER_INPUTS = "give the old content, or another run.dir"
_FREE_OF_MODEL = ("price", "kv_bytes_per_token")
_FREE_OF_ROLE = frozenset({"replicas", "num_gpus", "num_cpus", "resources", "batch"})
_FREE_OF_ENGINE = frozenset(
    {
        "replicas", "device", "cpus", "resources", "kv_cache_gb", "env", "grpc", "python", "start_timeout_s",
        "drain_timeout_s", "hang_timeout_s", "base_url", "api_key_env", "token_file", "api_version", "region",
        "profile", "role_arn", "project", "location", "requests_per_minute", "tokens_per_minute", "timeout_s",
        "max_attempts",
    }
)  # fmt: skip


class RunDir:
    """A run dir that was opened for one run.

    Attributes:
        path: The folder, absolute.
        run_id: Id in the tracker; a resumed run keeps it.
        sweep_id: Name of the sweep's folder; None for a single run.
        resumed: Whether it held a run already.
    """

    def __init__(self, path: Path, sweep_id: str | None = None) -> None:
        self.path = path.resolve()
        self.sweep_id = sweep_id
        environment = self.path / "env.json"
        # It is written once data and model are known: before that there are no rows, and a first start that failed
        # must not bind the next one to its spec.
        self.resumed = (self.path / "spec.yaml").is_file() and environment.is_file()
        known = _read(environment, json.loads).get("run_id") if environment.is_file() else None
        # Folder names repeat (the jobs of every sweep are 0, 1, ...), and the tracker wants one id for one run dir.
        self.run_id: str = known or f"{self.path.name}-{secrets.token_hex(3)}"

    @property
    def rows(self) -> Path:
        """Folder of the row journal."""
        return self.path / "rows"

    @property
    def steps(self) -> Path:
        """Folder of the journal of steps that a team takes; it goes when all rows are there."""
        return self.path / "steps"

    def keep_agents(self, file: Path) -> None:
        """Keep a copy of a team's own file, for the record, and for the nodes that don't have it.

        Raises:
            ConfigError: The run began with another content.
            DataError: It can't be read or written.
        """
        kept = self.path / KEPT_FILE
        with _writing(self.path):
            code = file.read_text()
            if kept.is_file() and kept.read_text() != code:
                problem = Problem(
                    "agents.file", file, f"has changed since the run dir began (see {kept})", _OTHER_INPUTS
                )
                raise ConfigError([problem], "The run works with other code than it began with; it was left alone.")
        write_whole(kept, code)

    def all_rows(self, ending: str) -> Path:
        """File with all rows in order."""
        return self.path / f"rows.{ending}"

    def open(self, spec: RunSpec) -> None:
        """Make the folder, or check that what is there was made by the same spec.

        Raises:
            ConfigError: The spec differs in keys that change the rows; names them.
            DataError: The folder holds something else, or can't be written.
        """
        plain = redact(spec.model_dump(mode="json"))
        if self.resumed:
            stored = _read(self.path / "spec.yaml", yaml.safe_load)
            problems = [
                Problem(key, new, f"the run dir was made with {old}", _OTHER_SPEC)
                for key, old, new in _differences(_fixed(stored), _fixed(plain))
            ]
            if problems:
                title = f"{self.path} holds rows of a different spec and was left as it is; nothing was started."
                raise ConfigError(problems, title)
            return
        if self.path.is_dir() and not (self.path / "spec.yaml").is_file() and self._holds_other_files():
            raise DataError(f"run.dir={self.path}: holds files but no spec.yaml, so it is no run dir; give another")
        with _writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.path / "spec.yaml", yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))

    def drop_results(self, *, but: str | None = None) -> None:
        """Remove what earlier starts made of the rows, as it is no longer true, but the rows in the format `but`."""
        for path in (self.all_rows("jsonl"), self.all_rows("parquet"), self.path / "summary.json"):
            if but is None or (path.name.startswith("rows.") and path != self.all_rows(but)):
                with _writing(self.path):
                    path.unlink(missing_ok=True)

    def _holds_other_files(self) -> bool:
        # A start that was killed, or found the disk full, may have left half a spec: there are no rows behind it.
        with _writing(self.path):
            return any(file.name != _half("spec.yaml") for file in self.path.iterdir())

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        """Write `env.json`; what an earlier start of the same run wrote goes into its `earlier` list.

        Raises:
            ConfigError: The run began with other data or other weights.
        """
        path = self.path / "env.json"
        earlier = []
        if path.is_file():
            before = _read(path, json.loads)
            _refuse_other_inputs(before, environment)
            earlier = [*before.pop("earlier", []), before]
        write_whole(path, json.dumps({"run_id": self.run_id, **environment, "earlier": earlier}, indent=2) + "\n")

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`."""
        write_whole(self.path / "summary.json", json.dumps(summary, indent=2) + "\n")

    def open_metrics(self) -> FileIO:
        """Open `metrics.jsonl` for appending, unbuffered: nothing is left to fail when it is closed."""
        return (self.path / "metrics.jsonl").open("ab", buffering=0)


def place(spec: RunSpec, sweep_dir: Path | None = None, job: int | None = None) -> RunDir:
    """Find the run dir: the one that is asked for, the job's own in its sweep, or a new one.

    Raises:
        ConfigError: `run.dir` is no folder.
    """
    if sweep_dir is not None and job is not None:
        return RunDir(sweep_dir / str(job), sweep_id=sweep_dir.name)
    if spec.run.dir is not None:
        path = Path(spec.run.dir).expanduser()
        if path.exists() and not path.is_dir():
            hint = "the run dir to resume, or a new one"
            raise ConfigError([Problem("run.dir", path, "is a file, not a folder", hint)])
        return RunDir(path)
    folder = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    return RunDir(Path(spec.run.root).expanduser() / re.sub(r"[^\w.+=,-]+", "-", spec.name) / folder)


def _refuse_other_inputs(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    problems = [
        Problem(key, now[section]["source"], f"was {old} when the run dir began, and is {new}", _OTHER_INPUTS)
        for key, section, field in (
            ("dataset", "data", "fingerprint"),
            ("model.source", "model", "revision"),
            ("model.source", "model", "checksum"),
        )
        if (old := before[section][field]) is not None and (new := now[section][field]) != old
    ]
    if problems:
        raise ConfigError(problems, "The run works with other content than it began with; the run dir was left alone.")


def _fixed(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a stored spec that changes what the rows say."""
    fixed = {key: value for key, value in spec.items() if key not in _FREE}
    fixed |= _fixed_of_app(spec)
    asked: set[str | None] = set()
    if agents := spec.get("agents"):
        # Its file's content is compared, wherever that stands.
        roles = {
            name: {key: value for key, value in role.items() if key not in _FREE_OF_ROLE}
            for name, role in agents["roles"].items()
        }
        fixed["agents"] = {key: value for key, value in agents.items() if key != "file"} | {"roles": roles}
        asked |= {user.get("app") for user in (*agents["roles"].values(), *agents["tools"].values())}
    for section in ("pipeline", "agents"):
        if section in fixed and "scorers" in (fixed[section] or {}):
            asked |= {scorer.get("app") for scorer in fixed[section]["scorers"]}
            # The k of pass@k are worked out from the rows.
            scorers = [{**scorer, "pass_at": None} for scorer in fixed[section]["scorers"]]
            fixed[section] = {**fixed[section], "scorers": scorers}
    fixed["apps"] = {name: _fixed_of_app(app) for name, app in spec["apps"].items() if name in asked}
    return fixed


def _fixed_of_app(app: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "engine": {key: value for key, value in app["engine"].items() if key not in _FREE_OF_ENGINE},
        "model": {key: value for key, value in app["model"].items() if key not in _FREE_OF_MODEL},
    }


def _differences(old: Any, new: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        names = list(dict.fromkeys([*old, *new]))
        return [
            difference
            for name in names
            for difference in _differences(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
        ]
    return [] if old == new else [(key, old, new)]


def write_whole(path: Path, text: str) -> None:
    """Replace a file of a run dir as a whole; for its only writer.

    Raises:
        DataError: It can't be written.
    """
    half = path.with_name(_half(path.name))
    with _writing(path):
        with half.open("w") as file:
            file.write(text)
            file.flush()
            # Or a power failure could leave it empty, and the rows beside it of no use.
            os.fsync(file.fileno())
        half.replace(path)


def _read(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """What matrix wrote there.

    Raises:
        DataError: It can't be read, or is something else.
    """
    way_out = "the rows are in its folder rows/; give another run.dir"
    try:
        found = parse(path.read_text())
    except OSError as error:
        raise DataError(f"{path}: {error.strerror} ({way_out})") from error
    except (ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path} is damaged: {str(error).splitlines()[0]} ({way_out})") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} is damaged: it isn't what matrix wrote ({way_out})")
    return found


def _half(name: str) -> str:
    """What a file is called until it is whole."""
    return f"{name}.tmp"


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; give another run.dir or run.root, or make room") from error
