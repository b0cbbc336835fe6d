"""What is done with which rows: the config groups `dataset`, `pipeline` and the node `workload`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from matrix.spec.base import Spec


class DatasetSpec(Spec):
    """Rows from a local file or from the Hugging Face hub; `path` wins when both are given."""

    name: str
    path: str | None = None
    """File of rows that is read instead of the hub: `.jsonl`, `.json` or `.csv` (also `.gz`, `.zst`) or `.parquet`;
    `package:PACKAGE/FILE` is a file inside an installed package."""
    hub: str | None = None
    """Data set id on the hub, such as `openai/gsm8k`."""
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    limit: int | None = Field(default=None, gt=0)
    """Take only the first rows."""
    id_key: str | None = None
    """Column that names a row; None: its number."""

    @model_validator(mode="after")
    def _has_a_source(self) -> DatasetSpec:
        if self.path is None and self.hub is None:
            raise ValueError("needs a source: give dataset.path (a file) or dataset.hub (an id on the hub)")
        return self


class Message(Spec):
    """One chat message; `content` is a Jinja template over the row's columns."""

    role: Literal["system", "user", "assistant"]
    content: str


class ScorerSpec(Spec):
    """How an answer is judged. `reference` is a Jinja template over the row's columns."""

    kind: Literal["number", "math", "exact", "contains", "choice"]
    name: str | None = None
    """Name in rows and summary; None: the kind."""
    reference: str

    @property
    def label(self) -> str:
        """Name of the scorer in rows and summary."""
        return self.name or self.kind


class GenerateSpec(Spec):
    """One request per row and trial, then the scorers."""

    kind: Literal["generate"]
    name: str
    prompt: list[Message] = []
    """Messages of the request, as templates. Empty: the row brings them in `messages_key`."""
    messages_key: str | None = None
    """Column that holds ready chat messages."""
    scorers: list[ScorerSpec] = []

    @model_validator(mode="after")
    def _makes_sense(self) -> GenerateSpec:
        if bool(self.prompt) == bool(self.messages_key):
            raise ValueError("needs exactly one of pipeline.prompt and pipeline.messages_key")
        labels = [scorer.label for scorer in self.scorers]
        if len(set(labels)) < len(labels):
            raise ValueError(f"scorer names must differ, got {', '.join(labels)}: set pipeline.scorers.N.name")
        return self


PipelineSpec = GenerateSpec


class WorkloadSpec(Spec):
    """How rows are worked through; nothing here changes what a row says."""

    concurrency: int = Field(default=64, gt=0)
    """Requests in flight."""
    request_timeout_s: float = Field(default=600, gt=0)
    max_attempts: int = Field(default=6, gt=0)
    """Tries per row, the first included; only failures that another try can mend are tried again."""
    progress_every_s: float = Field(default=5, gt=0)
    """Seconds between log lines (without a terminal) and between records in metrics.jsonl."""
