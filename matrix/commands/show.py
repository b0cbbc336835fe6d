"""`matrix show`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import orjson
from rich.console import Console
from rich.text import Text

from matrix.data.rows import Row
from matrix.data.sampling import Samples
from matrix.errors import ConfigError, Problem, did_you_mean
from matrix.show.find import Run, find_rows, find_run
from matrix.show.overview import table, totals_lines
from matrix.show.page import write_page
from matrix.show.text import Span, spans
from matrix.show.totals import Totals
from matrix.show.view import ending_of

HELP = """\
usage: matrix show RUN [--row ID] [--trial N] [--index N] [--html FILE] [--termination X] [--limit N] [--json]

Read what a run gave, also while it goes. RUN is its run dir. Without more: a table of its rows, and what they come to.

  --row ID         one conversation: the task, every turn with its calls, scores, metrics, why it ended
  --trial N        of several trials of a row; without it the first one that there is
  --index N        the row at this place in the input, from 0, for names that repeat
  --html FILE      a page of the conversations that needs no server: open it in a browser. Search, filters, details
  --termination X  only rows that ended so: a team's termination, a finish reason (stop, length), or error
  --limit N        how many rows: the first 100 in the table, 2,000 drawn uniformly on the page; 0: all
  --json           rows as JSON, one a line

  matrix show outputs/coral/RUN --row 17
  matrix show outputs/coral/RUN --termination max_turns --html long.html
  matrix show outputs/coral/RUN --limit 0 | less -RS
"""

_OPTIONS = ("--row", "--trial", "--index", "--html", "--termination", "--limit", "--json")
_NOTHING = "Nothing was shown."
_TABLE_ROWS = 100
_PAGE_ROWS = 2000


@dataclass
class _Asked:
    """What was typed."""

    run: str = ""
    row: str | None = None
    trial: int | None = None
    index: int | None = None
    html: Path | None = None
    termination: str | None = None
    limit: int | None = None
    json: bool = False


def main(arguments: list[str]) -> int:
    """Run it; returns the exit code."""
    asked = _parse(arguments)
    # Lines are cut or left whole, never folded: so they can be searched and copied.
    console = _Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
    try:
        run = find_run(Path(asked.run))
        if asked.row is not None or asked.index is not None:
            _show_row(console, run, asked)
        elif asked.html is not None:
            _write_html(run, asked.html, asked)
        else:
            _show_table(console, run, asked)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has seen enough (`| head`); Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parse(arguments: list[str]) -> _Asked:
    parser = _Parser(prog="matrix show", add_help=False, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN")
    for option in ("--row", "--termination"):
        parser.add_argument(option)
    for option in ("--trial", "--index", "--limit"):
        parser.add_argument(option, type=int)
    parser.add_argument("--html", type=Path)
    parser.add_argument("--json", action="store_true")
    asked, unknown = parser.parse_known_args(arguments, _Asked())
    # What follows an unknown option is its value.
    wrong = [argument for argument in unknown if argument.startswith("-")] or unknown
    problems = [
        Problem(argument, None, "no such argument", did_you_mean(argument.partition("=")[0], _OPTIONS))
        for argument in wrong
    ]
    chosen = [name for name in ("row", "index", "html") if getattr(asked, name) is not None]
    if "html" in chosen and (len(chosen) > 1 or asked.json):
        problems.append(Problem("--html", asked.html, "goes with neither --row, --index nor --json"))
    if asked.trial is not None and not {"row", "index"} & set(chosen):
        problems.append(Problem("--trial", asked.trial, "goes with --row or --index"))
    if asked.limit is not None and asked.limit < 0:
        problems.append(Problem("--limit", asked.limit, "should be 0 (all) or more"))
    if problems:
        raise ConfigError(problems, _NOTHING)
    return asked


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Rich would exit with 1."""
        raise BrokenPipeError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError([Problem("matrix show", None, message, "matrix show --help")], _NOTHING)


def _show_row(console: Console, run: Run, asked: _Asked) -> None:
    rows = find_rows(run, asked.row, asked.index, asked.trial)
    if asked.json:
        for row in rows:
            _print_json(row)
        return
    _print(console, spans(rows[0]))
    if others := rows[1:]:
        names = ", ".join(f"--index {row.index} --trial {row.trial}" for row in others[:5])
        more = f", and {len(others) - 5} more" if len(others) > 5 else ""
        print(f"\nThere are {len(others)} more of this name: {names}{more}", file=sys.stderr)


def _show_table(console: Console, run: Run, asked: _Asked) -> None:
    totals = Totals()
    if asked.json:
        for row in _first(_chosen(run, totals, asked), asked.limit or 0):
            _print_json(row)
        return
    limit = _TABLE_ROWS if asked.limit is None else asked.limit
    chosen = _Counted(_chosen(run, totals, asked))
    _print(console, table(_first(chosen, limit), console.width if console.is_terminal else 0))
    # What the table left is counted, too.
    for _ in chosen:
        pass
    if limit and chosen.count > limit:
        console.print(f"... the first {limit:,} of {chosen.count:,} rows; --limit 0 shows all", style="dim")
    if asked.termination is not None:
        _say_termination(asked.termination, chosen.count, totals)
    console.print(f"\n{run.name}" + (f"  {run.status}" if run.status else ""), style="bold")
    _print(console, totals_lines(totals))


def _write_html(run: Run, target: Path, asked: _Asked) -> None:
    limit = _PAGE_ROWS if asked.limit is None else asked.limit
    totals = Totals()
    chosen = _Counted(_chosen(run, totals, asked))
    if limit:
        samples = Samples(limit)
        for row in chosen:
            samples.add(row)
        rows: Iterable[Row] = samples.rows()
    else:
        for _ in chosen:
            pass
        # Once more from the disk: all of them may be more than memory holds.
        rows = _chosen(run, Totals(), asked)
    shown = min(limit, chosen.count) if limit else chosen.count
    notes = []
    if asked.termination is not None:
        notes.append(f"only rows with the termination {asked.termination}")
        _say_termination(asked.termination, chosen.count, totals)
    if shown < chosen.count:
        notes.append(f"a uniform sample of {shown:,} of {chosen.count:,} rows")
    size = write_page(target, run, totals, rows, "; ".join(notes))
    sampled = f" of {chosen.count:,}, drawn uniformly (--limit 0 takes all)" if shown < chosen.count else ""
    print(f"{target}: {shown:,} {'row' if shown == 1 else 'rows'}{sampled}, {size / 1e6:.1f} MB")


def _say_termination(termination: str, count: int, totals: Totals) -> None:
    if not count:
        known = did_you_mean(termination, [name for name in totals.endings if name])
        print(f"no row ended with {termination} ({known})", file=sys.stderr)


def _chosen(run: Run, totals: Totals, asked: _Asked) -> Iterator[Row]:
    """The rows that are asked for; all of the run are counted."""
    for row in run.rows():
        totals.add(row)
        if asked.termination is None or ending_of(row) == asked.termination:
            yield row


class _Counted:
    """Counts what is taken from it."""

    def __init__(self, rows: Iterator[Row]) -> None:
        self._rows = rows
        self.count = 0

    def __iter__(self) -> Iterator[Row]:
        return self

    def __next__(self) -> Row:
        row = next(self._rows)
        self.count += 1
        return row


def _first(rows: Iterator[Row], limit: int) -> Iterator[Row]:
    """So many rows, and not one more taken than that; 0: all."""
    left = limit
    while not limit or left:
        row = next(rows, None)
        if row is None:
            return
        left -= 1
        yield row


def _print(console: Console, pieces: Iterable[Span]) -> None:
    for text, style in pieces:
        console.print(Text(text, style=style), end="")


def _print_json(row: Row) -> None:
    print(orjson.dumps(row, str).decode())
