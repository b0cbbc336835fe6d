"""What SWE-bench's harness takes: a patch for each instance."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from matrix.agents.teams.swe.roles import SUBMITTED
from matrix.data.rows import AgentRow, Row
from matrix.errors import DataError


def predictions(rows: Iterable[Row], model: str, trial: int = 0) -> dict[str, dict[str, Any]]:
    """Predictions by instance id.

    Args:
        rows: Rows of a run.
        model: What the harness is to call the model.
        trial: Of the rows that were worked on several times.

    Returns:
        For each instance `instance_id`, `model_name_or_path` and `model_patch`, which is empty where none was given.

    Raises:
        DataError: A row is no instance, or two are the same one.
    """
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row.trial != trial:
            continue
        instance = row.request.get("task", {}).get("instance_id")
        if not isinstance(row, AgentRow) or instance is None:
            raise DataError(f"row {row.id!r} has no column instance_id: these are no rows of a run with agents=swe")
        if instance in found:
            raise DataError(f"row {row.id!r}: there is another one with the instance_id {instance}")
        found[instance] = {
            "instance_id": instance,
            "model_name_or_path": model,
            "model_patch": patch_of(row),
        }
    return found


def patch_of(row: AgentRow) -> str:
    """The patch that a row handed in; empty if it handed in none."""
    if row.termination != SUBMITTED:
        return ""
    return str((row.history[-1].data or {})["patch"])
