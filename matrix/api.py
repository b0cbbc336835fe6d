"""What programs use beside `matrix.client`: a cluster and its apps. See docs/python.md and docs/apps.md."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from matrix.apps.lookup import Updater, cluster_key, describe, door_addresses, find_app, urls_of
from matrix.cluster import launch, report
from matrix.cluster.inside import inside
from matrix.cluster.kept import KeptCluster, find_kept, start_kept, stop_kept
from matrix.cluster.ray import RayCluster, connect
from matrix.cluster.waiting import LiveLine
from matrix.errors import AppError, ClusterError, did_you_mean
from matrix.spec import AttachCluster, ClusterSpec, LocalCluster, SlurmCluster

if TYPE_CHECKING:
    from matrix.apps.deploying import Deployed
    from matrix.apps.status import AppStatus

Action = Literal["add", "replace", "remove"]


class Cli:
    """A cluster that is already there; joined when it is first needed, left by `close` (or at the end of `with`).

    A process that is connected to Ray already uses that connection, whatever the arguments say.

    Args:
        address: `ip:port` of the head's GCS, or `auto` for the cluster on this machine: the one that
            `deploy_applications` keeps, if there is one. As `cluster.address`.
        token_path: File with the cluster's Ray token; as `cluster.token_path`.
        start_timeout_s: Seconds until a cluster that doesn't answer is given up.
    """

    def __init__(self, address: str = "auto", token_path: str | None = None, *, start_timeout_s: float = 60) -> None:
        self._spec: ClusterSpec = AttachCluster(
            kind="attach", address=address, token_path=token_path, start_timeout_s=start_timeout_s
        )
        self._cluster: RayCluster | None = None
        self._kept: KeptCluster | None = None

    @classmethod
    def of(cls, cluster: ClusterSpec) -> Self:
        """The cluster of a spec. One of jobs is joined by what runs inside it."""
        cli = cls()
        cli._spec = cluster
        return cli

    def start_cluster(
        self, overrides: Sequence[str] = (), *, wait: bool = True, live: LiveLine | None = None
    ) -> dict[str, Any]:
        """Start a cluster that stays, or add workers to it: `matrix start_cluster`.

        Args:
            overrides: As on the command line.
            wait: Wait for the head and the workers.
            live: Told what is waited for.

        Returns:
            What `matrix status` tells of it.

        Raises:
            ConfigError: With every problem of the config.
            ClusterError: It doesn't come up.
        """
        cluster, live = _cluster_of(overrides), live or LiveLine()
        match cluster:
            case LocalCluster():
                if (kept := find_kept()) is not None and kept.spec != cluster:
                    live.say("The cluster of this machine is up already, and stays as it was started")
                kept = start_kept(cluster)
                return {"id": "local", "address": kept.address, "folder": str(kept.folder)}
            case AttachCluster():
                raise ClusterError("cluster=attach: that one is there already")
            case SlurmCluster():
                folder = launch.start(cluster, live, wait=wait)
                if cluster.executor == "debug":
                    launch.run_here(folder, cluster)
                return report.describe(folder)

    def plan_cluster(self, overrides: Sequence[str] = ()) -> str:
        """What `start_cluster` would submit: the sbatch scripts, which are also kept in the folder of the cluster's id.

        Raises:
            ConfigError: With every problem of the config.
        """
        cluster = _cluster_of(overrides)
        if not isinstance(cluster, SlurmCluster):
            return "Nothing is submitted: Ray is started on this machine."
        return "\n".join(f"# {path}\n{text}" for path, text in launch.plan(cluster).items())

    def deploy_applications(
        self,
        overrides: Sequence[str] = (),
        *,
        action: Action = "add",
        names: Sequence[str] | None = None,
        wait: bool = True,
        say: Callable[[str], None] = lambda _: None,
        on_status: Callable[[list[AppStatus]], None] = lambda _: None,
    ) -> Deployed:
        """Deploy the apps of a config, change them, or remove them. `cluster=local` starts a cluster that stays.

        Args:
            overrides: As on the command line.
            action: `add` deploys those that aren't there, leaves those that are as they should be, and refuses those
                that run with another spec; `replace` brings those to the new one; `remove` removes them.
            names: Only these of the config's apps; for `remove` any that are running.
            wait: Wait until they are healthy.
            say: Told what is done.
            on_status: Told how far the apps are, again and again.

        Returns:
            What was done with which app, and where the front door is.

        Raises:
            ConfigError: With every problem of the config.
            ClusterError: The cluster can't be had.
            AppError: An app failed, can't be placed, or runs with another spec.
        """
        from matrix.apps.deploying import Deploying
        from matrix.apps.nodes import gpus_per_node
        from matrix.compose import compose_spec

        spec = compose_spec([*overrides, "tracker=none"])
        wanted = spec.all_apps()
        if action != "remove":
            unknown = [name for name in names or () if name not in wanted]
            if unknown:
                raise AppError(
                    f"app {unknown[0]}: no such app in this config ({did_you_mean(unknown[0], list(wanted))})"
                )
            wanted = {name: app for name, app in wanted.items() if names is None or name in names}
        kept = self._start_or_join(spec.cluster, start=action != "remove", say=say)
        here = inside()
        log_dir = here.logs if here else kept.log_dir if kept else Path.cwd() / "matrix-logs"
        grows = not isinstance(spec.cluster, LocalCluster)
        deploying = Deploying(log_dir, gpus_per_node(spec.cluster), say, on_status, grows=grows)
        if action == "remove":
            return deploying.remove(list(names or wanted))
        return deploying.deploy(wanted, replace=action == "replace", wait=wait)

    def status(self) -> dict[str, Any]:
        """The cluster, its nodes, and its apps with their replicas.

        Raises:
            ClusterError: The cluster can't be reached.
        """
        from matrix.apps.deploying import describe_cluster

        self._join()
        return describe_cluster()

    def check_health(self, app_name: str, **options: Any) -> dict[str, Any]:
        """Ask an app something, as its clients do.

        Args:
            app_name: Name of the app, or of its model if only one app serves that.
            **options: As for `matrix.apps.health.check_health`.

        Returns:
            `healthy`, and for each replica and the front door what came back.

        Raises:
            AppError: There is no such app.
        """
        from matrix.apps.health import check_health

        self._join()
        return check_health(find_app(app_name), **options)

    def api_key(self) -> str:
        """What all apps of the cluster ask for.

        Raises:
            AppError: No app was ever deployed.
        """
        self._join()
        return cluster_key()

    def stop_cluster(self) -> bool:
        """Stop the local cluster that `deploy_applications` keeps, with all its apps; whether there was one."""
        self.close()
        kept = find_kept()
        if kept is None:
            return False
        stop_kept(kept)
        return True

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
            head_only: Only the front door, or the first replica where there is none.

        Returns:
            `name`, `model_name`, `api_key`, `args`, `endpoints` (`head`: base URL at the front door, or of the first
            replica where there is none; `workers`: URLs of all replicas; `grpc`: the same for gRPC; `updater`: an
            asynchronous function for what they are now) and the fields of docs/python.md.

        Raises:
            ClusterError: The cluster can't be reached.
            AppError: There is no such app; names those that are running.
        """
        self._join()
        app = find_app(app_name, model_name)
        door = door_addresses()

        def ask() -> list[str]:
            return urls_of(app.name)[: 1 if head_only else None]

        urls, grpc_urls = ask(), urls_of(app.name, grpc=True)
        head = f"{door['url']}/{app.name}/v1" if door else next(iter(urls), None)
        return {
            **describe(app, urls, grpc_urls, door),
            "endpoints": {
                "head": head,
                "workers": [] if head_only else urls,
                "grpc": [] if head_only else grpc_urls,
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

    def _start_or_join(self, cluster: Any, *, start: bool, say: Callable[[str], None]) -> KeptCluster | None:
        """Join the config's cluster; a local one is started if it isn't there, and outlives this process."""
        if _is_connected():
            return self._kept
        if not isinstance(cluster, LocalCluster):
            self._spec = cluster
            self._join()
            there = find_kept()
            if there is not None and getattr(cluster, "address", None) in ("auto", there.address):
                self._kept = there
            return self._kept
        kept = find_kept()
        if kept is None and not start:
            raise ClusterError("there is no cluster on this machine: matrix deploy_applications starts one")
        if kept is None:
            say("Starting Ray on this machine ...")
            kept = start_kept(cluster)
        elif kept.spec != cluster:
            say("The cluster of this machine is up already, and stays as it was started (matrix stop_cluster ends it)")
        self._spec, self._kept = kept.attach(), kept
        self._join()
        return kept

    def _join(self) -> None:
        # `connect` sets what Ray reads while it is imported, so that it isn't imported here.
        if _is_connected():
            return
        if find_spec("ray") is None:
            raise ClusterError("apps on a cluster need Ray: pip install 'matrix-llm[vllm]'")
        path = getattr(self._spec, "token_path", None)
        if path and not Path(path).expanduser().is_file():
            raise ClusterError(f"token_path={path}: no such file; give the token file of the cluster")
        self._cluster = connect(self._spec)


def _cluster_of(overrides: Sequence[str]) -> ClusterSpec:
    """The cluster of a config that places nothing on it."""
    from matrix.compose import compose_spec

    nothing = ("tracker=none", "engine=openai", "engine.base_url=http://127.0.0.1/v1", "engine.api_key_env=null")
    return compose_spec([*nothing, *overrides], joins=False).cluster


def _is_connected() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())
