from __future__ import annotations

import random

from matrix.data.rows import Row
from matrix.data.sampling import Samples
from tests.tracking.tracked_rows import bad_row, good_row


def _sample(size: int, rows: list[Row]) -> list[Row]:
    samples = Samples(size)
    for row in rows:
        samples.add(row)
    return samples.rows()


def test_the_sample_does_not_depend_on_the_order_in_which_rows_finish() -> None:
    rows = [good_row(number) for number in range(500)]
    shuffled = random.Random(0).sample(rows, len(rows))
    assert _sample(20, rows) == _sample(20, shuffled)


def test_the_sample_is_uniform_over_the_input() -> None:
    kept = [row.index for row in _sample(1000, [good_row(number) for number in range(10_000)])]
    assert len(kept) == 1000
    assert kept == sorted(kept)
    tenths = [sum(tenth * 1000 <= index < (tenth + 1) * 1000 for index in kept) for tenth in range(10)]
    assert all(60 <= count <= 140 for count in tenths), tenths  # 100 expected, standard deviation 9.


def test_fewer_rows_than_the_size_are_all_kept_and_size_zero_keeps_none() -> None:
    rows = [good_row(0), bad_row(1)]
    assert _sample(5, rows) == rows
    assert _sample(0, rows) == []


def test_trials_of_one_row_are_rows_of_their_own_and_a_repeated_key_is_replaced() -> None:
    rows = _sample(5, [good_row(0, "old"), good_row(0, "other trial", trial=1), good_row(0, "new")])
    assert [(row.trial, row.response.text[0] if row.response else "") for row in rows] == [
        (0, "new"),
        (1, "other trial"),
    ]
