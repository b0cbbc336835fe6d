"""The summary on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from matrix.data.rows import AgentRow, Call, Entry, Row, RowError
from matrix.pipelines.metrics import summarise
from matrix.run.report import show_summary
from matrix.spec import Price

USAGE = {"prompt_tokens": 10, "completion_tokens": 5}
REST: dict[str, Any] = {
    "cost_usd": None,
    "time_s": {"total": 3.0, "until_ready": 1.0},
    "speed": {"generated_tokens_per_s": 5.0},
}


def shown(capsys: pytest.CaptureFixture[str], *rows: Row, price: Price | None = None) -> dict[str, str]:
    """The right column by the left one."""
    summary = {
        **summarise(rows, []).to_dict(dict.fromkeys(("critic", "writer"), price) if price else {}),
        **REST,
    }
    show_summary("a team", Path("outputs"), summary)
    lines = [line.split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    return {left.strip(): right.strip() for _, left, right, _ in lines}


def row(index: int, termination: str, turns: int, **metrics: float) -> AgentRow:
    history = [Entry("writer", "text", took_s=0.5, calls=[Call("llm", 0.4, USAGE)]) for _ in range(turns)]
    return AgentRow(
        str(index), index, 0, "ok", {}, history=[*history, Entry("critic", "fine")], termination=termination,
        metrics=metrics, tokens=USAGE,
    )  # fmt: skip


def test_a_team(capsys: pytest.CaptureFixture[str]) -> None:
    failed = AgentRow("2", 2, 0, "error", {}, error=RowError("died", "why"), termination="error")
    found = shown(capsys, row(0, "agreement", 1, drafts=1), row(1, "agreement", 3, drafts=3, words=7), failed)
    assert found == {
        "drafts": "2.0000 ± 1.0000 (n = 2)",
        "words": "7.0000 (n = 1)",
        "ended by": "agreement 2, error 1",
        "writer": "4 turns, 0.5 s each, 40 + 20 tokens",
        "critic": "2 turns, 0 s each",
        "rows": "2 ok, 1 errors",
        "generated tokens": "10 (5.0/s)",
        "time": "3.0 s (1.0 s until the engine was ready)",
        "run dir": "outputs",
    }


def test_a_team_with_a_price(capsys: pytest.CaptureFixture[str]) -> None:
    found = shown(capsys, row(0, "end", 2, drafts=2), price=Price(output_per_million=1000))
    assert found["writer"] == "2 turns, 0.5 s each, 20 + 10 tokens, 0.0100 USD"
    assert found["drafts"] == "2.0000"


def test_a_pipeline_has_none_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(shown(capsys, Row("0", 0, 0, "ok", {}))) == ["rows", "generated tokens", "time", "run dir"]
