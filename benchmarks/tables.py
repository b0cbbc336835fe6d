"""Tables of figures that were measured more than once."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

Figures = Mapping[str, float]
Runs = dict[str, list[Figures]]
"""What each contender did, round by round."""


def show(title: str, columns: Mapping[str, tuple[str, str]], runs: Mapping[str, Sequence[Figures]]) -> None:
    """Print a table: the median of each figure, with the lowest and the highest.

    Args:
        title: Its headline.
        columns: Key of a figure -> what it is called, and its format. A figure that a contender lacks is left empty.
        runs: Contender -> its figures in each round.
    """
    lines = [["", *(name for name, _ in columns.values())]]
    for contender, several in runs.items():
        cells = [_cell([one[key] for one in several if key in one], form) for key, (_, form) in columns.items()]
        lines.append([contender, *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(f"\n{title}")
    for first, *rest in lines:
        cells = [f"{first:{widths[0]}}", *(f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True))]
        print("  ".join(cells), flush=True)


def ratio(ours: Sequence[Figures], theirs: Sequence[Figures], key: str) -> str:
    """How often one contender's figure is another's: `0.99 x (0.98 to 1.05)`.

    Neighbours in time are compared, then the median is taken: what slows the machine slows both.
    """
    found = [mine[key] / other[key] for mine, other in zip(ours, theirs, strict=True)]
    return f"{statistics.median(found):.3f} x ({min(found):.3f} to {max(found):.3f})"


def _cell(values: Sequence[float], form: str) -> str:
    if not values:
        return "-"
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"
