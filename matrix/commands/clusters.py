"""Which cluster a command means: the arguments of all commands that are about one that is there."""

from __future__ import annotations

from collections.abc import Mapping

from matrix.cluster.folder import ClusterFolder, find, find_all, root_of
from matrix.cluster.inside import inside
from matrix.errors import ClusterError, did_you_mean

OWN = {"cluster.id": "", "cluster.root": ""}
"""Arguments that say which cluster of jobs."""


def named(own: Mapping[str, str]) -> ClusterFolder | None:
    """The cluster that is meant; None if there is none and none was named.

    Raises:
        ClusterError: There is no such cluster, or several and none was named.
    """
    here = inside()
    if here is not None:
        return here
    root, name = root_of(own["cluster.root"]), own["cluster.id"]
    known = {folder.home.name: folder for folder in find_all(root)}
    if name:
        folder = find(root / name)
        if folder is None:
            hint = did_you_mean(name, list(known)) if known else f"there is none below {root}"
            raise ClusterError(f"cluster.id={name}: no such cluster ({hint})")
        return folder
    if len(known) > 1:
        raise ClusterError(f"there are several clusters: give cluster.id={' or '.join(known)}")
    return next(iter(known.values()), None)
