"""Sums rows up: accuracy with its error bar, pass@k, maj@k, and what the run as a whole took.

Rows come one at a time and in order, and are not kept: memory is the same for any number of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from matrix.data.rows import AgentRow, Response, Row, RowKey
from matrix.pipelines.summary import Summary
from matrix.pipelines.tally import Latencies, ScorerTally
from matrix.pipelines.team_tally import TeamTally

_NONE: Mapping[str, Sequence[int]] = {}


class Summariser:
    """Takes rows in order of (index, trial) and sums up those so far whenever it is asked.

    When the index moves on a question is over, and only sums of it stay.
    """

    def __init__(self, labels: Sequence[str], pass_at: Mapping[str, Sequence[int]] = _NONE) -> None:
        """Starts with no rows; see `summarise`."""
        self._last = RowKey(-1, -1)
        self._ok = 0
        self._errors: Counter[str] = Counter()
        self._executed: Counter[str] = Counter()
        self._retries = 0
        self._prompt_tokens = 0
        self._cached_prompt_tokens = 0
        self._completion_tokens = 0
        self._truncated = 0
        self._empty = 0
        self._latencies = Latencies()
        self._lost = 0
        """Rows of the present question that ended in an error."""
        self._team: TeamTally | None = None
        self._scorers = {label: ScorerTally(pass_at.get(label)) for label in labels}

    def add(self, row: Row) -> None:
        """Counts one row.

        Raises:
            ValueError: It doesn't come after the row before it.
        """
        key = row.key
        if key <= self._last:
            raise ValueError(f"rows come in order of (index, trial), each once: {key} came after {self._last}")
        if row.index != self._last.index:
            for tally in self._scorers.values():
                tally.end_question(self._lost)
            self._lost = 0
        self._last = key
        if isinstance(row, AgentRow):
            self._add_workflow(row)
            return
        outcome = row.response or row.error
        self._retries += max(outcome.attempts - 1, 0) if outcome else 0
        if row.response is None:
            self._errors[row.error.type if row.error else "unknown"] += 1
            self._lost += 1
            return
        self._ok += 1
        self._add_response(row.response)
        for label, tally in self._scorers.items():
            tally.add(row.scores.get(label))

    def summary(self) -> Summary:
        """The sums so far."""
        return Summary(
            rows=self._ok + self._errors.total(),
            ok=self._ok,
            errors=dict(self._errors.most_common()),
            retries=self._retries,
            prompt_tokens=self._prompt_tokens,
            cached_prompt_tokens=self._cached_prompt_tokens,
            completion_tokens=self._completion_tokens,
            truncated=self._truncated,
            empty=self._empty,
            latency=self._latencies.summary(),
            executed=dict(self._executed.most_common()),
            team=self._team.summary() if self._team else None,
            scorers={
                label: tally.summary(self._lost, errors=bool(self._errors)) for label, tally in self._scorers.items()
            },
        )

    def _add_workflow(self, row: AgentRow) -> None:
        if self._team is None:
            self._team = TeamTally()
        self._team.add(row)
        usage = row.usage
        self._prompt_tokens += usage.get("prompt_tokens") or 0
        self._cached_prompt_tokens += usage["prompt_tokens_details"]["cached_tokens"]
        self._completion_tokens += usage.get("completion_tokens") or 0
        self._retries += sum(max(call.attempts - 1, 0) for entry in row.history for call in entry.calls)
        if row.status == "error":
            self._errors[row.error.type if row.error else "unknown"] += 1
            self._lost += 1
            return
        self._ok += 1
        self._latencies.add(row.took_s)
        for label, tally in self._scorers.items():
            tally.add(row.scores.get(label))

    def _add_response(self, response: Response) -> None:
        usage = response.usage
        self._prompt_tokens += usage.get("prompt_tokens") or 0
        self._cached_prompt_tokens += (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        self._completion_tokens += usage.get("completion_tokens") or 0
        if response.executed is not None:
            self._executed[response.executed["status"]] += 1
        self._truncated += response.finish_reason.count("length")
        tool_calls = response.tool_calls or [[]] * len(response.text)
        self._empty += sum(
            not text.strip() and not calls for text, calls in zip(response.text, tool_calls, strict=True)
        )
        self._latencies.add(response.latency_s)


def summarise(rows: Iterable[Row], labels: Sequence[str], pass_at: Mapping[str, Sequence[int]] = _NONE) -> Summary:
    """Sums up rows in order of (index, trial), as `read_rows` gives them.

    Args:
        rows: The rows.
        labels: The scorers to sum up.
        pass_at: By scorer the k of its pass@k; where it isn't there 1, 2, 4, ... and the number of samples.

    Raises:
        ValueError: The rows come in another order, or one comes twice.
    """
    summariser = Summariser(labels, pass_at)
    for row in rows:
        summariser.add(row)
    return summariser.summary()
