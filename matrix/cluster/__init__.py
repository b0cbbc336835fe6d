"""Ray clusters: started on this machine, or joined where they are."""

from __future__ import annotations

from matrix.cluster.ray import RayCluster, connect

__all__ = ["RayCluster", "connect"]
