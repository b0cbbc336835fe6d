"""Ray on one node of a cluster, as a process of its own: `python -m matrix.cluster.raylet`.

It does what `ray start --block` does, and what that can't: every port is a free one, no Ray client server listens, a
cluster may be on loopback. Its standard input has a line of options (JSON), until which it only imports Ray, and then
`drain SECONDS`; it tells where it is, or why it doesn't start, by a line of JSON, and ends Ray when its input is closed
or a process of Ray's ends by itself.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from typing import Any

_LOOK_S = 0.5


def main() -> int:
    """Run Ray's processes of this node until they are to end; return the exit code: 1 if one ended by itself."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # Slurm signals every process of a job: the job's own decides what is done, and Ray's have handlers.
        signal.signal(number, lambda *_: None)
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    given = sys.stdin.readline()
    if not given:
        return 0
    options = json.loads(given)
    is_head = "gcs_address" not in options
    try:
        node = Node(
            RayParams(
                node_manager_port=0,
                object_manager_port=0,
                min_worker_port=0,
                max_worker_port=0,
                dashboard_agent_listen_port=0,
                dashboard_host="127.0.0.1",
                include_log_monitor=False,
                no_monitor=True,
                **({"gcs_server_port": 0} if is_head else {}),
                **options,
            ),
            head=is_head,
            shutdown_at_exit=False,
            spawn_reaper=True,
        )
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
        raise
    try:
        where = {
            "node_id": node.node_id,
            "address": node.gcs_address,
            "metrics": f"{node.node_ip_address}:{node.metrics_export_port}",
            "dashboard": (node.webui_url or "").rpartition(":")[2] if options.get("include_dashboard") else "",
        }
        print(json.dumps(where), flush=True)
        return _serve(node)
    finally:
        node.kill_all_processes(check_alive=False, allow_graceful=False)


def _serve(node: Any) -> int:
    while node.remaining_processes_alive():
        ready, _, _ = select.select([0], [], [], _LOOK_S)
        if ready:
            line = os.read(0, 4096).decode()
            if not line:
                return 0
            _drain(node, float(line.split()[1]))
    ended = ", ".join(str(kind) for kind, _ in node.dead_processes())
    print(f"Ray's own process ended: {ended} (logs: {node.get_logs_dir_path()})", file=sys.stderr, flush=True)
    return 1


def _drain(node: Any, seconds: float) -> None:
    """Tell Ray that the node will go: Serve moves its replicas, and nothing new comes."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated import autoscaler_pb2

    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline_ms = int((time.time() + seconds) * 1000)
    client = GcsClient(address=node.gcs_address)
    accepted, why = client.drain_node(node.node_id, reason, "the node leaves the cluster", deadline_ms)
    print("draining" if accepted else f"Ray doesn't drain the node: {why}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
