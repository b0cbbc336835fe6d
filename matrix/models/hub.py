"""A model on the Hugging Face hub, or in the hub's cache on this machine."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from matrix.errors import AppError
from matrix.models.base import ResolvedModel, Say
from matrix.models.weights import folder_problem

T = TypeVar("T")

REQUEST_LIMIT_S = 5.0
"""For the connection and for each read of the one request that is made."""
HUB_LIMIT_S = 10.0
"""For all of it: a name server that doesn't answer has no limit of its own."""


@dataclass(frozen=True)
class HubSource:
    """A repository on the hub.

    Attributes:
        origin: The source as given.
        repo: `org/name`.
        revision: Branch, tag or commit; None: the main branch.
    """

    origin: str
    repo: str
    revision: str | None = None

    def problem(self) -> str | None:
        """What is wrong with the source, in one line; None if nothing is. Doesn't ask the hub."""
        if find_spec("huggingface_hub") is None and self._snapshot_problem():
            return "models on the hub need huggingface_hub: pip install huggingface_hub"
        wanted_offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
        if wanted_offline and (why := self._snapshot_problem()):
            return f"HF_HUB_OFFLINE is set and the hub's cache doesn't have it ({why}): unset it, or give a folder"
        return None

    def resolve(self, say: Say) -> ResolvedModel:
        """The id with the commit that the hub names now; without the hub, the folder in the hub's cache.

        Raises:
            AppError: Neither the hub nor its cache have it; says what was tried.
        """
        try:
            return ResolvedModel(self.repo, _within(HUB_LIMIT_S, self._commit), None, self.origin)
        except Exception as error:  # noqa: BLE001 - whatever keeps the hub from answering, the cache is next
            answer = f"{type(error).__name__}: {(str(error).strip() or 'no details').splitlines()[0]}"
        if why := self._snapshot_problem():
            raise AppError(
                f"model.source={self.origin}: neither the hub nor its cache has it. Tried:\n"
                f"  the hub at {_endpoint()}: {answer}\n"
                f"  its cache: {why}\n"
                f"  a folder: there is none of the name {self.origin}\n"
                "Ways out: model.source=FOLDER, HF_ENDPOINT=URL of a mirror, HF_TOKEN for a gated model,\n"
                "HF_HUB_CACHE=FOLDER of a filled cache (HF_HUB_OFFLINE=1 then spares the wait for the hub)"
            )
        snapshot = self._snapshot()
        say(f"{self.origin}: the hub named no commit ({answer}); taking {snapshot} from its cache")
        return ResolvedModel(str(snapshot), snapshot.name, None, self.origin)

    def _commit(self) -> str:
        from huggingface_hub import HfApi

        commit = HfApi().model_info(self.repo, revision=self.revision, timeout=REQUEST_LIMIT_S).sha
        if commit is None:
            raise ValueError("the hub named no commit")
        return commit

    def _snapshot(self) -> Path:
        """Where the cache keeps the revision; it may not be there.

        The layout (`refs/` names commits, `snapshots/` holds one folder for each) is documented at
        docs/huggingface_hub/guides/manage-cache of the hub.
        """
        entry = hub_cache() / f"models--{self.repo.replace('/', '--')}"
        revision = self.revision or "main"
        ref = entry / "refs" / revision
        return entry / "snapshots" / (ref.read_text().strip() if ref.is_file() else revision)

    def _snapshot_problem(self) -> str | None:
        return folder_problem(self._snapshot())


def hub_cache() -> Path:
    """The hub's own cache on this machine; the variables are those of huggingface_hub, in its order."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser().absolute()


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _within(limit_s: float, work: Callable[[], T]) -> T:
    """Run `work` in a thread and leave it behind after the limit; a daemon, so that it holds up no exit."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as error:  # noqa: BLE001 - carried over to the caller
            future.set_exception(error)

    threading.Thread(target=run, daemon=True, name="hub").start()
    try:
        return future.result(limit_s)
    except TimeoutError as error:
        raise TimeoutError(str(error) or f"no answer within {limit_s:.0f} s") from error
