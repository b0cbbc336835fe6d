"""Answers that are programs, judged by a real sandbox."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from matrix.client.endpoints import Endpoints
from matrix.client.http import ModelClient
from matrix.data.rows import Example, Score
from matrix.errors import DataError, RequestError
from matrix.pipelines.references import References
from matrix.pipelines.scoring_pool import ScoringPool
from matrix.spec import CodeScorerSpec
from tests.serving.sandbox_server import sandbox

SAMPLES = Path(__file__).parents[2] / "matrix/data/samples"
HUMANEVAL = CodeScorerSpec(
    kind="code", reference="{{ test }}", context="{{ prompt }}", entry_point="{{ entry_point }}", timeout_s=5
)
MBPP = CodeScorerSpec(kind="code", reference='{{ test_list | join("\n") }}', prelude="{{ test_setup_code }}")
DOUBLE = {
    "prompt": 'def helper(x):\n    return x * 2\n\n\ndef wanted(x):\n    """ Half of x. """\n',
    "test": "def check(candidate):\n    assert helper(candidate(8)) == 8\n",
    "entry_point": "wanted",
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with sandbox(key=None, cpus=2) as url:
        yield url


def samples(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (SAMPLES / name).read_text().splitlines()]


def judged(
    url: str, scorer: CodeScorerSpec, answers: Sequence[tuple[dict[str, Any], list[str]]], *, closed: bool = False
) -> list[Score]:
    """The answers to each row, by the scorer."""

    async def judge() -> list[Score]:
        client = ModelClient(Endpoints([url]), api_key=None, timeout_s=60, max_attempts=2)
        references = References([scorer], "pipeline.scorers")
        async with client, ScoringPool([scorer], clients={"code": client}) as pool:
            if closed:
                client.gate.close()
            rows = [(references.render(Example(str(i), i, row)), texts) for i, (row, texts) in enumerate(answers)]
            for reference, _ in rows:
                pool.check(reference)
            return [found["code"] for found in await asyncio.gather(*(pool.score(t, r) for r, t in rows))]

    return asyncio.run(judge())


def test_right_programs_pass_and_broken_ones_do_not(url: str) -> None:
    rows = samples("humaneval.jsonl")
    answers = [(row, [row["canonical_solution"], "    return object()", "    return ("]) for row in rows]
    for score in judged(url, HUMANEVAL, answers):
        assert score.values == [1, 0, 0], score
        assert score.statuses == ["ok", "failed", "error"]
        assert score.answers[0] == "passed"
        assert "SyntaxError" in str(score.answers[2])


def test_mbpp(url: str) -> None:
    rows = samples("mbpp.jsonl")
    for score in judged(url, MBPP, [(row, [f"```python\n{row['code']}\n```", "No."]) for row in rows]):
        assert score == Score([1, 0], ["passed", None], ["ok", "no_code"])


@pytest.mark.parametrize(
    "answer",
    [
        "import os\nos._exit(0)",
        "raise SystemExit(0)",
        "print('passed')",
        "class Any:\n    __eq__ = lambda self, other: True\ndef helper(x):\n    return 8\ndef wanted(x):\n    return Any()",
        "def helper(x):\n    return 8\ndef wanted(x):\n    return None",
        "import builtins\nbuiltins.AssertionError = Exception\ndef wanted(x):\n    return 0",
    ],
)
def test_a_pass_is_not_forged(url: str, answer: str) -> None:
    (score,) = judged(url, HUMANEVAL, [(DOUBLE, [f"```python\n{answer}\n```", "    return x // 2"])])
    assert score.values == [0, 1], score


def test_equal_programs_are_run_once(url: str) -> None:
    slow = "import time\ntime.sleep(0.5)\ndef wanted(x):\n    return x / 2"
    loop = asyncio.new_event_loop()
    began = loop.time()
    (score,) = judged(url, HUMANEVAL, [(DOUBLE, [f"```\n{slow}\n```"] * 40)])
    assert score.values == [1] * 40
    assert loop.time() - began < 8
    loop.close()


def test_a_gate_that_closes_loses_no_answers(url: str) -> None:
    (score,) = judged(url, HUMANEVAL, [(DOUBLE, ["    return x / 2"])], closed=True)
    assert score.values == [1]


def test_time_is_limited(url: str) -> None:
    quick = HUMANEVAL.model_copy(update={"timeout_s": 0.5})
    (score,) = judged(url, quick, [(DOUBLE, ["    while True: pass"])])
    assert (score.values, score.statuses) == ([0], ["timeout"])


def test_what_the_app_refuses_is_an_error_and_no_score(url: str) -> None:
    with pytest.raises(RequestError, match="timeout"):
        judged(url, HUMANEVAL.model_copy(update={"timeout_s": 1000}), [(DOUBLE, ["    return x"])])


def test_a_row_without_a_test_is_told(url: str) -> None:
    with pytest.raises(DataError, match="scorer code: the test is empty"):
        judged(url, HUMANEVAL, [({**DOUBLE, "test": " "}, ["    return x"])])
