"""Where metrics and samples are shown: the config group `tracker`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from matrix.spec.base import Spec


class WandbTracker(Spec):
    """One Weights & Biases run per job."""

    kind: Literal["wandb"]
    project: str = "matrix"
    entity: str | None = None
    group: str | None = None
    """None: the id of the sweep, if the job belongs to one."""
    job_type: str | None = None
    """None: the name of the pipeline."""
    tags: list[str] = []
    notes: str | None = None
    mode: Literal["auto", "online", "offline"] = "auto"
    """`auto`: online when a key is found, otherwise offline. It never asks."""
    samples: int = Field(default=64, ge=0)
    """Rows in the table of samples."""
    log_rows: bool = False
    """Upload the rows as an artifact."""


class NoTracker(Spec):
    """The run dir alone."""

    kind: Literal["none"]


TrackerSpec = Annotated[WandbTracker | NoTracker, Field(discriminator="kind")]
