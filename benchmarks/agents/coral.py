"""What all contestants of `overhead.py` do: Coral's loop of six steps without a model.

Standard library only: the peers import it in environments of their own. Rounds, lengths and answers follow from the
row's number, so that everybody takes the same turns and says the same.

The rules are those of fair-matrix's own dummy (`coral_mmlu_pro_dummy`): teacher and student say 820 to 1,228
characters, the extractor an option; the matcher sees an agreement with a chance of 10 % in the first two rounds and of
90 % from the third on, which makes 2.8 rounds, 8.4 turns, a row.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

ORDER = ("teacher", "answer_extractor", "answer_matcher", "student", "answer_extractor", "answer_matcher")
MOST_TURNS = 120
"""Twenty rounds of two speakers."""

_LETTERS = "ABCDEFGHIJ"
_SENTENCE = "The list price is what a buyer sees first; what is left when the net price is taken away is the discount. "
_TEXT = _SENTENCE * 12


def row(number: int) -> dict[str, Any]:
    """A row in the shape of MMLU-Pro's, and the number of rounds until the matcher sees an agreement."""
    return {
        "question_id": number,
        "question": f"A bill lists {number} items at $4.95; what is the trade discount at a net price of $2.95 each?",
        "options": [f"${option}.00" for option in range(len(_LETTERS))],
        "answer": _LETTERS[number % len(_LETTERS)],
        "category": "business",
        "rounds": rounds(number),
    }


def rounds(number: int) -> int:
    """Drawn from the row's number."""
    random = Random(number)
    done = 1
    while random.random() >= (0.1 if done < 3 else 0.9):
        done += 1
    return min(done, MOST_TURNS // 3)


def speak(number: int, turn: int) -> str:
    """What teacher or student says: about 1 KB."""
    return _TEXT[: 820 + (number * 7919 + turn * 104_729) % 409]


def extract(number: int, turn: int) -> str:
    """What the extractor says."""
    return f"({_LETTERS[(number + turn) % len(_LETTERS)]})"


def agree(task: Mapping[str, Any], turn: int) -> bool:
    """Whether the matcher, whose turn this is (from 0), sees an agreement."""
    return bool(turn // 3 + 1 >= task["rounds"])


_began = False


def begin() -> None:
    """Note in BENCHMARK_MARKS when this process took its first turn; for contestants that don't say so themselves."""
    global _began  # noqa: PLW0603 - once in a process
    if not _began:
        _began = True
        if folder := os.environ.get("BENCHMARK_MARKS"):
            Path(folder, str(os.getpid())).write_text(repr(time.time()))
