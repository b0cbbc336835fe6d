"""Data sets from the Hugging Face hub, through `datasets`; imported by the functions only, since it takes seconds."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matrix.errors import DataError
from matrix.spec.workload import DatasetSpec

_LOG = logging.getLogger(__name__)

_REACH_TIMEOUT_S = 5.0
"""How long the hub may take to name a data set's revision; `datasets` itself would try in vain for 23 s and longer."""


@dataclass(frozen=True)
class HubTable:
    """A split: downloaded, its rows mapped into memory from the disk, or read from the hub as they are needed.

    Attributes:
        name: Data set and split, for messages.
        table: What `datasets` made of them.
        total: How many rows; None where they aren't downloaded.
    """

    name: str
    table: Any
    total: int | None

    def rows(self) -> Iterator[tuple[int, Any]]:
        """Rows from the first one, with their numbers.

        Raises:
            DataError: The hub fails in the middle.
        """
        try:
            yield from enumerate(self.table)
        # Whatever the readers and HTTP clients behind `datasets` raise ends here.
        except Exception as error:
            raise DataError(f"{self.name}: {type(error).__name__}: {_one_line(error)}") from error

    def place(self, number: int) -> str:
        """Where a row is, for messages."""
        return f"{self.name} row {number}"


def open_hub(spec: DatasetSpec) -> tuple[HubTable, str]:
    """Load the split of `dataset.hub`: from the hub, or from the cache of `datasets` where the hub can't be reached.

    With `dataset.streaming` nothing is downloaded, and nothing is in the cache.

    Returns:
        The rows and their fingerprint, `id@revision`: the same online and from the cache.

    Raises:
        DataError: `datasets` isn't installed; the hub has no such data set, revision, subset or split; or the hub
            can't be reached and the rows aren't in the cache.
    """
    try:
        import datasets
    except ImportError as error:
        way_out = "pip install 'matrix-llm[hub]', or give dataset.path=FILE"
        raise DataError(f"dataset.hub={spec.hub}: needs the package datasets ({way_out})") from error

    revision, trouble = _find_revision(spec)
    if trouble is not None and spec.streaming:
        raise _unreachable(spec, trouble, "dataset.streaming needs it") from trouble
    try:
        with _offline(trouble is not None):
            table = datasets.load_dataset(
                spec.hub, spec.subset, split=spec.split, revision=revision, streaming=spec.streaming
            )
    # Whatever the builders, readers and HTTP clients behind `datasets` raise ends here.
    except Exception as error:
        if trouble is not None:
            raise _unreachable(spec, trouble, "it isn't in the cache either") from error
        way_out = "check dataset.subset and dataset.split, or give dataset.path=FILE"
        raise DataError(f"dataset.hub={spec.hub}: {type(error).__name__}: {_one_line(error)} ({way_out})") from error
    name = f"{spec.hub} {spec.split}"
    if spec.streaming:
        return HubTable(name, table, None), f"{spec.hub}@{revision}"
    found = _revision_on_disk(table, revision)
    # `datasets` takes any revision from its cache, without asking, when the hub fails in the middle.
    if revision not in (None, "main", found):
        failure = trouble or ConnectionError("it failed in the middle")
        raise _unreachable(spec, failure, f"the cache has revision {found}, not {revision}") from trouble
    if trouble is not None:
        _LOG.warning("The hub can't be reached (%s): %s@%s is taken from the cache", trouble, spec.hub, found)
    return HubTable(name, table, len(table)), f"{spec.hub}@{found}"


def _find_revision(spec: DatasetSpec) -> tuple[str | None, Exception | None]:
    """The commit that `dataset.revision` means now; as it is, with the reason, where the hub can't be asked."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return _resolve(str(spec.hub), spec.revision), None
    # ValueError: not even the form of an id.
    except (HfHubHTTPError, ValueError) as error:
        if not (isinstance(error, HfHubHTTPError) and error.response.status_code >= 500):
            raise DataError(f"dataset.hub={spec.hub}: {_one_line(error)} (or give dataset.path=FILE)") from error
        return spec.revision, error
    # Which library does the HTTP, and with it the class of its errors, changes between versions of huggingface_hub.
    except Exception as error:  # noqa: BLE001
        return spec.revision, error


def _resolve(hub: str, revision: str | None) -> str:
    """The commit that a revision means now."""
    import datasets
    from huggingface_hub import HfApi

    api = HfApi(endpoint=datasets.config.HF_ENDPOINT)
    return str(api.dataset_info(hub, revision=revision, timeout=_REACH_TIMEOUT_S).sha)


def _revision_on_disk(table: Any, revision: str | None) -> str:
    """The revision that a table was made from: `datasets` names the folder of its Arrow files after it."""
    files = table.cache_files
    return Path(files[0]["filename"]).parent.name if files else str(revision)


@contextmanager
def _offline(offline: bool) -> Iterator[None]:
    """Keep `datasets` to its cache, without the minute of retries before it looks there."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = offline or before
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _unreachable(spec: DatasetSpec, trouble: Exception, cache: str) -> DataError:
    import datasets

    return DataError(
        f"dataset.hub={spec.hub}: the hub at {datasets.config.HF_ENDPOINT} could not be reached "
        f"({type(trouble).__name__}: {_one_line(trouble)}) and {cache}; give a local file: dataset.path=FILE"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
