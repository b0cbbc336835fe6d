"""The process that writes what Ray knows of a cluster: `python -m matrix.run.observer FOLDER ADDRESS`.

`matrix status` reads it, so that it takes no second, and the workers, to see whether replicas are left on them. It is a
process of its own since Ray ends those that are connected to it when its control plane goes.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from matrix.apps.deploying import describe_cluster
from matrix.apps.directory import existing_directory
from matrix.apps.lookup import cluster_key
from matrix.cluster.folder import ClusterFolder
from matrix.cluster.node import say, unknown
from matrix.cluster.ray import connect
from matrix.cluster.states import write
from matrix.spec import AttachCluster

_LOOK_S = 1.0


def main(folder: ClusterFolder, address: str) -> None:
    """Look again and again, until this process is ended."""
    connect(AttachCluster(kind="attach", address=address, token_path=str(folder.token)))
    has_key = False
    while True:
        with unknown(say, "What Ray knows can't be written"):
            write(folder.ray, json.dumps(look()), durable=False)
            if not has_key and existing_directory() is not None:
                write(folder.key, cluster_key(), 0o600)
                has_key = True
        time.sleep(_LOOK_S)


def look() -> dict[str, Any]:
    """What `describe_cluster` gives, with Ray's id of each node and whether replicas are on it."""
    import ray
    from ray._private import state

    actors = state.actors().values()
    busy = {
        a["Address"]["NodeID"] for a in actors if a["State"] == "ALIVE" and "Replica" in str(a.get("ActorClassName"))
    }
    ids = {node["NodeName"]: node["NodeID"] for node in ray.nodes() if node["Alive"]}
    found = describe_cluster()
    for node in found["nodes"]:
        node["id"] = ids.get(node["name"], "")
        node["busy"] = node["id"] in busy
    return {"time": time.time(), **found}


if __name__ == "__main__":
    main(ClusterFolder(Path(sys.argv[1])), sys.argv[2])
