"""What programs use beside `matrix.client`: apps on a Ray cluster that is already there. See docs/python.md."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from matrix.apps.lookup import Updater, describe, find_app, urls_of
from matrix.cluster.ray import RayCluster, connect
from matrix.errors import ClusterError
from matrix.spec import AttachCluster


class Cli:
    """A cluster that is already there; joined when it is first needed, left by `close` (or at the end of `with`).

    A process that is connected to Ray already uses that connection, whatever the arguments say.

    Args:
        address: `ip:port` of the head's GCS, or `auto` for the cluster on this machine; as `cluster.address`.
        token_path: File with the cluster's Ray token; as `cluster.token_path`.
        start_timeout_s: Seconds until a cluster that doesn't answer is given up.
    """

    def __init__(self, address: str = "auto", token_path: str | None = None, *, start_timeout_s: float = 60) -> None:
        self._spec = AttachCluster(
            kind="attach", address=address, token_path=token_path, start_timeout_s=start_timeout_s
        )
        self._cluster: RayCluster | None = None

    def get_app_metadata(
        self,
        app_name: str,
        endpoint_ttl_sec: float = 5,
        model_name: str | None = None,
        head_only: bool = False,
    ) -> dict[str, Any]:
        """Where an app can be reached, and what it serves.

        Args:
            app_name: Name of the app, or of its model if only one app serves that.
            endpoint_ttl_sec: Seconds after which `endpoints["updater"]` asks the cluster again.
            model_name: Name of a model, to look for if there is no app of that name.
            head_only: Only the first replica.

        Returns:
            `name`, `model_name`, `api_key`, `args`, `endpoints` (`head`: URL of the first replica or None, `workers`:
            URLs of all, `updater`: an asynchronous function for what they are now) and the fields of docs/python.md.

        Raises:
            ClusterError: The cluster can't be reached.
            AppError: There is no such app; names those that are running.
        """
        self._join()
        app = find_app(app_name, model_name)

        def ask() -> list[str]:
            return urls_of(app.name)[: 1 if head_only else None]

        urls = ask()
        return {
            **describe(app, urls),
            "endpoints": {
                "head": urls[0] if urls else None,
                "workers": [] if head_only else urls,
                "updater": Updater(ask, urls, endpoint_ttl_sec),
            },
        }

    def close(self) -> None:
        """Leave the cluster, if it was joined here."""
        cluster, self._cluster = self._cluster, None
        if cluster is not None:
            cluster.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _join(self) -> None:
        # `connect` sets what Ray reads while it is imported, so that it isn't imported here.
        ray = sys.modules.get("ray")
        if ray is not None and ray.is_initialized():
            return
        if find_spec("ray") is None:
            raise ClusterError("apps on a cluster need Ray: pip install 'matrix-llm[vllm]'")
        path = self._spec.token_path
        if path and not Path(path).expanduser().is_file():
            raise ClusterError(f"token_path={path}: no such file; give the token file of the cluster")
        self._cluster = connect(self._spec)
