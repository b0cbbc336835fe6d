"""A second Ray node on this machine, at 127.0.0.2, until the input ends:
`python -m tests.integration.another_node ADDRESS CPUS GPUS [RESOURCES]`, these as JSON.

Ray's token is where RAY_AUTH_TOKEN_PATH says. Prints a line once the node has joined. `ray start` can't do it: it takes
no cluster on loopback for one that another node may join. Only 127.0.0.1 is loopback to Ray (2.60), so this node's own
ports are open on all interfaces, under the token.
"""

from __future__ import annotations

import json
import os
import sys

HOST = "127.0.0.2"
"""Also the name of the node in Ray."""


def main(address: str, cpus: int, gpus: int, resources: str = "{}") -> None:
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    # Like Cluster.add_node of ray.cluster_utils, which wants to have started the head, too.
    parameters = RayParams(
        gcs_address=address,
        redis_address=address,
        node_ip_address=HOST,
        num_cpus=cpus,
        num_gpus=gpus,
        resources=json.loads(resources),
        object_store_memory=100 * 2**20,
        include_log_monitor=False,
        node_manager_port=0,
        min_worker_port=0,
        max_worker_port=0,
    )
    node = Node(parameters, head=False, shutdown_at_exit=True, spawn_reaper=True)
    try:
        print("joined", flush=True)
        sys.stdin.read()
    finally:
        node.kill_all_processes(check_alive=False, allow_graceful=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
