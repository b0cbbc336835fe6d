"""What is done with which rows: the config groups `dataset`, `pipeline` and the node `workload`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from matrix.spec.base import Spec


class DatasetSpec(Spec):
    """Rows from files or from the Hugging Face hub; `path` wins when both are given."""

    name: str
    path: str | list[str] | None = None
    """Files of rows that are read instead of the hub: `.jsonl`, `.json` or `.csv` (also `.gz`, `.zst`) or `.parquet`.
    One, a pattern (`data/*.jsonl`; `**` is any depth), or a list of both. `package:PACKAGE/FILE` is a file inside an
    installed package; `s3://`, `gs://`, `https://` and other addresses are read through fsspec."""
    hub: str | None = None
    """Data set id on the hub, such as `openai/gsm8k`."""
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    streaming: bool = False
    """Read the hub's rows as they are needed, without a download before; how many there are isn't known then."""
    limit: int | None = Field(default=None, gt=0)
    """Take only the first rows."""
    id_key: str | None = None
    """Key path (`id`, `metadata.id`) of what a row is called in the output, a label only; None: its number."""
    on_bad_row: Literal["error", "stop"] = "error"
    """A row that can't be read: `error` makes it a row with an error, `stop` ends the run."""

    @field_validator("path", mode="before")
    @classmethod
    def _is_files(cls, path: object) -> object:
        some = path if isinstance(path, list) else [path]
        if path is not None and not (some and all(isinstance(one, str) for one in some)):
            raise ValueError(f"should be a file, a pattern such as 'data/*.jsonl', or a list of them, not {path!r}")
        return path

    @model_validator(mode="after")
    def _has_a_source(self) -> DatasetSpec:
        if self.path is None and self.hub is None:
            raise ValueError("needs a source: give dataset.path (a file) or dataset.hub (an id on the hub)")
        return self


class Message(Spec):
    """One chat message; `content` is a Jinja template over the row's columns."""

    role: Literal["system", "user", "assistant"]
    content: str


class _Scorer(Spec):
    kind: str
    name: str | None = None
    """Name in rows and summary; None: the kind."""
    reference: str
    """What an answer is judged by; a Jinja template over the row's columns."""
    pass_at: list[Annotated[int, Field(gt=0)]] | None = None
    """The k of pass@k, as far as there are so many samples; None: 1, 2, 4, ... and their number."""

    @property
    def label(self) -> str:
        """Name of the scorer in rows and summary."""
        return self.name or self.kind

    @property
    def templates(self) -> dict[str, str]:
        """Its templates, by field."""
        return {"reference": self.reference}


class TextScorerSpec(_Scorer):
    """An answer is read and compared with `reference`."""

    kind: Literal["number", "math", "exact", "contains", "choice"]


class CodeScorerSpec(_Scorer):
    """An answer is a program; `reference` is Python code that tests it, in a sandbox of its own."""

    kind: Literal["code"]
    context: str = ""
    """What the answer goes on from, such as the head of a function; a template, as are the next two."""
    entry_point: str = ""
    """Name of the function that is asked for; empty: the last one of `context`, else whatever the test names."""
    prelude: str = ""
    """Code before the test, such as imports."""
    app: str = "code"
    """The app with `engine=sandbox` that runs both."""
    timeout_s: float | None = Field(default=None, gt=0)
    """Seconds that a program and its test may take; None: the app's own."""
    memory_mb: int | None = Field(default=None, gt=0)
    """Memory of a program; None: the app's own."""

    @property
    def templates(self) -> dict[str, str]:
        """Its templates, by field."""
        return {name: getattr(self, name) for name in ("reference", "context", "entry_point", "prelude")}


ScorerSpec = Annotated[TextScorerSpec | CodeScorerSpec, Field(discriminator="kind")]
"""How an answer is judged."""


class GenerateSpec(Spec):
    """One request per row and trial, then the scorers."""

    kind: Literal["generate"]
    name: str
    prompt: list[Message] = []
    """Messages of the request, as templates."""
    messages_key: str | None = None
    """Key path (`messages`, `request.messages`) of a row's ready chat messages."""
    text_key: str | None = None
    """Key path of a row's text: it becomes one user message, or several where it holds Llama 3 header tokens.
    None of the three: the first of `messages`, `request.messages`, `text` and `prompt` that a row has."""
    system_prompt: str | None = Field(default=None, min_length=1)
    """Takes the place of the first system message, or comes before all messages; None leaves them as they are."""
    sampling_key: str | None = None
    """Key path of a row's own sampling fields, on top of the run's; a row without any takes the run's."""
    api: Literal["chat", "completions"] = "chat"
    """`completions` sends a text as it is, without the model's chat template."""
    scorers: list[ScorerSpec] = []

    @model_validator(mode="after")
    def _makes_sense(self) -> GenerateSpec:
        shapes = [name for name in ("prompt", "messages_key", "text_key") if getattr(self, name)]
        if len(shapes) > 1:
            way_out = "set the others to null, pipeline.prompt to []"
            raise ValueError(f"takes one of prompt, messages_key and text_key, got {' and '.join(shapes)} ({way_out})")
        if self.api == "completions" and (self.messages_key or self.system_prompt or len(self.prompt) > 1):
            raise ValueError(
                "api=completions sends one text: give pipeline.text_key or a prompt of one message, and neither "
                "messages_key nor system_prompt"
            )
        labels = [scorer.label for scorer in self.scorers]
        if len(set(labels)) < len(labels):
            raise ValueError(f"scorer names must differ, got {', '.join(labels)}: set pipeline.scorers.N.name")
        return self


class ExecuteSpec(Spec):
    """Runs the program of each row in a sandbox, then the scorers, which judge its stdout.

    A row's columns `stdin`, `args`, `files`, `outputs`, `language`, `timeout`, `memory`, `test`, `entry_point` and
    `prelude` go along (`matrix.sandbox.execution.Execution`), but for those that the program is made of.
    """

    kind: Literal["execute"]
    name: str
    text_keys: list[str] = []
    """Key paths of the parts of a row's program, which are put together line by line; with neither these nor
    `prompt_template` it is the column `code`."""
    prompt_template: str | None = None
    """Comes after them: a text that Python's `str.format` fills with the row's columns."""
    language: str | None = None
    """Of programs whose row doesn't say; None: Python."""
    timeout: float | None = Field(default=None, gt=0)
    """Seconds, for programs whose row doesn't say; None: up to the app."""
    memory: int | None = Field(default=None, gt=0)
    """Megabytes, for programs whose row doesn't say; None: up to the app."""
    scorers: list[ScorerSpec] = []


PipelineSpec = GenerateSpec | ExecuteSpec


class Concurrency(Spec):
    """How many requests are in flight: found while the run goes, between two limits. A number instead is all three."""

    min: int = Field(default=1, gt=0)
    start: int = Field(default=32, gt=0)
    """Where it begins; brought between the two others."""
    max: int = Field(default=1024, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _fixed(cls, given: object) -> object:
        if isinstance(given, dict | Concurrency):
            return given
        if not isinstance(given, int) or isinstance(given, bool) or given < 1:
            raise ValueError(f"should be a number of requests from 1 on, or min, start and max, not {given!r}")
        return {"min": given, "start": given, "max": given}

    @model_validator(mode="after")
    def _has_room(self) -> Concurrency:
        if self.min > self.max:
            raise ValueError(f"min={self.min} is more than max={self.max}: set both")
        return self


class WorkloadSpec(Spec):
    """How rows are worked through; nothing here changes what a row says."""

    concurrency: Concurrency = Concurrency()
    """Requests in flight."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    """What a paid API allows; None: no limit."""
    tokens_per_minute: float | None = Field(default=None, gt=0)
    """The same for tokens of prompts and answers, estimated before a request and corrected after it."""
    request_timeout_s: float = Field(default=600, gt=0)
    """Deadline of a row, from when it is first sent; all its tries and waits included."""
    try_timeout_s: float | None = Field(default=None, gt=0)
    """Limit of one try, so that a row can leave a server that hangs; None: the row's deadline alone."""
    max_attempts: int = Field(default=6, gt=0)
    """Tries per row that may fail; only failures that another try can mend are tried again, and those of a server that
    is busy or can't be reached don't count."""
    budget_usd: float | None = Field(default=None, gt=0)
    """The run stops when its requests have cost this much by `model.price`; None: no limit."""
    stall_warn_s: float = Field(default=60, gt=0)
    """Without a finished row for so long the log names what is in flight."""
    stall_limit_s: float | None = Field(default=None, gt=0)
    """Without a finished row for so long what is in flight becomes errors; None: `request_timeout_s`."""
    retry_errors: bool = False
    """A resume asks again for the rows that ended in an error."""
    use_grpc: bool = False
    """Talk gRPC to the app's replicas (`engine.grpc=true`) instead of HTTP."""
    drivers: int = Field(default=1, gt=0)
    """Processes that share the rows: the peers of a team."""
    max_in_flight: int | None = Field(default=None, gt=0)
    """Rows of a team that are worked on at a time, in all; None: twice the requests that may be in flight."""
    affinity: bool = True
    """A row's requests go to the same replica, unless that is overloaded: it has their prefix in its cache."""
    resources: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Logical resources that each of several drivers takes, which pin it to nodes that have them."""
    progress_every_s: float = Field(default=5, gt=0)
    """Seconds between log lines (without a terminal) and between records in metrics.jsonl."""
