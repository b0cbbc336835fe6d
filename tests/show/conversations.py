"""Rows of teams for the tests, as a run writes them."""

from __future__ import annotations

from pathlib import Path

import yaml

from matrix.data.journal import Journal
from matrix.data.rows import AgentRow, Call, Entry, Response, Row, RowError, Score

SPEC = {
    "name": "coral-smollm2",
    "trials": 2,
    "seed": 7,
    "agents": {"name": "coral", "roles": {"teacher": {}, "student": {}, "match": {}}},
    "model": {"name": "smollm2"},
    "engine": {"kind": "simulated"},
    "dataset": {"name": "mmlu", "limit": None},
    "sampling": {"temperature": 0.7, "max_tokens": 512},
}
HOSTILE = (
    "</script><!-- <script>window.hacked = 1; alert(1)</script><img src=http://192.0.2.1/x onerror=alert(2)> & \u2028"
)


def llm(took_s: float = 1.25, **fields: object) -> Call:
    usage = {"prompt_tokens": 120, "completion_tokens": 40, "prompt_tokens_details": {"cached_tokens": 100}}
    return Call("llm", took_s, usage, "http://10.0.0.5:8000/v1", **fields)  # type: ignore[arg-type]


def talk(
    index: int, trial: int = 0, *, name: str | None = None, said: str = "It is Paris.", right: bool = True
) -> AgentRow:
    """A row whose agents agreed."""
    search = {
        "id": "c1",
        "type": "function",
        "function": {"name": "search", "arguments": '{"query": "France", "limit": 3}'},
    }
    return AgentRow(
        name or f"q{index}",
        index,
        trial,
        "ok",
        {"task": {"question": f"What is the capital of country {index}?", "options": ["Paris", "Rome"], "answer": "A"}},
        scores={"math": Score([float(right)], ["A" if right else None])},
        history=[
            Entry(
                "teacher",
                said,
                0.0,
                1.25,
                reasoning="I should look it up.\nThen answer.",
                tool_calls=[search],
                calls=[llm()],
            ),
            Entry("tools", "France: capital Paris", 1.25, 0.01, data={"hits": 3}, calls=[Call("search", 0.004)]),
            Entry("student", "I agree.\nIt is A.", 1.3, 2.5, calls=[llm(2.0, replayed=True), llm(0.5, attempts=3)]),
        ],
        termination="agreement",
        metrics={"rounds": 2.0, "persuaded": 0.25},
        tokens={"prompt_tokens": 360, "completion_tokens": 120, "cached_prompt_tokens": 300},
        took_s=3.8,
    )


def broken(index: int, trial: int = 0) -> AgentRow:
    """A row whose role raised an exception."""
    trace = "Traceback (most recent call last):\n  File \"team.py\", line 7, in act\nKeyError: 'answer'"
    return AgentRow(
        f"q{index}",
        index,
        trial,
        "error",
        {"task": {"question": f"Unanswerable question {index}"}},
        error=RowError("exception", "student: KeyError: 'answer'", 1, trace),
        history=[Entry("teacher", "Hm.", 0.0, 0.5, calls=[Call("llm", 0.5, error="timeout: no answer in 60 s")])],
        termination="error",
        tokens={"prompt_tokens": 10, "completion_tokens": 0},
        took_s=0.5,
    )


def plain(index: int, *answers: str) -> Row:
    """A row of the pipeline `generate`."""
    answers = answers or ("Paris",)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Question {index}?"}]
    usage = {"prompt_tokens": 31, "completion_tokens": 8, "prompt_tokens_details": None}
    ended: list[str | None] = ["stop"] * len(answers)
    response = Response(list(answers), ended, usage, None, None, None, 0.75, "http://10.0.0.5:8000/v1", 2)
    score = Score([float(text == "Paris") for text in answers], list(answers))
    return Row(f"r{index}", index, 0, "ok", {"model": "m", "messages": messages}, response, scores={"exact": score})


def write_run(folder: Path, *rows: Row, spec: dict[str, object] | None = None) -> Path:
    """A run dir with these rows, in two parts."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec or SPEC))
    for part in range(2):
        with Journal(folder / "rows", f"peer-{part}") as journal:
            for row in rows[part::2]:
                journal.append(row)
    return folder
