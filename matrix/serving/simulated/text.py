"""The text of simulated answers and its tokens: words of a vocabulary, forced JSON, or a file that is replayed."""

from __future__ import annotations

import re
import zlib
from itertools import count
from random import Random

from matrix.data.formats import FileRows, Unreadable
from matrix.data.sources import locate
from matrix.errors import DataError

CHARACTERS_PER_TOKEN = 4
"""Of prompts, and of JSON that a request forces; what English text has, roughly."""

_WORD_LIST = """
    a about after all also an and answer any are as at be because been before but by can could data day do each even
    find first for from get give go had has have her here high him his how if in into is it its just know large last
    line long look made make many may might model more most much must name new no not now number of on one only or
    order other our out over part people place point problem right run same say see set she short should show since
    small so some state still such system take than that the their them then there these they thing think this those
    through time to token true two under up upon use value very was water way we well were what when where which while
    who will with word work world would year you
"""
_VOCABULARY = _WORD_LIST.split()
_PIECES = re.compile(r"\s*\S+\s*$|\s*\S+")


def _fixed_words() -> list[str]:
    """A long stretch of words; an answer is a part of it, which takes no time to draw."""
    return [f" {word}" for word in Random(0).choices(_VOCABULARY, k=16384)]  # noqa: S311 - no secret


_WORDS = _fixed_words()


def words(random: Random, number: int) -> list[str]:
    """Draw words, each a token."""
    begin = int(random.random() * len(_WORDS))
    tokens = _WORDS[begin : begin + number]
    while len(tokens) < number:
        tokens += _WORDS[: number - len(tokens)]
    if tokens:
        tokens[0] = tokens[0][1:]
    return tokens


def words_near(token: str, number: int) -> list[str]:
    """Other words, always the same for a token."""
    begin = zlib.crc32(token.encode()) % len(_VOCABULARY)
    return [f" {_VOCABULARY[(begin + step) % len(_VOCABULARY)]}" for step in range(number)]


def pieces(text: str) -> list[str]:
    """The tokens of a text: its words, each with the white space before it."""
    return _PIECES.findall(text) or ([text] if text else [])


def chunked(text: str) -> list[str]:
    """The tokens of JSON: four characters each."""
    return [text[at : at + CHARACTERS_PER_TOKEN] for at in range(0, len(text), CHARACTERS_PER_TOKEN)]


class Replay:
    """Answers from a file, one after another, again from the first one after the last.

    Args:
        path: A file that `dataset.path` could name, JSONL as a rule; each row has the `text` of an answer, or its
            `output_tokens`.

    Raises:
        DataError: It can't be read, holds none, or a row has neither.
    """

    def __init__(self, path: str) -> None:
        try:
            files = [FileRows(file) for file in locate(path)]
        except DataError as error:
            # It doesn't say itself which one is meant.
            raise DataError(f"engine.outputs={path}: {error}") from error
        self._answers = [_answer(row, file.place(number)) for file in files for number, row in file.rows()]
        if not self._answers:
            raise DataError(f"{path}: holds no answers to replay")
        self._turn = count()

    def next(self) -> str | int:
        """The text of the next answer, or its number of tokens."""
        return self._answers[next(self._turn) % len(self._answers)]


def _answer(row: object, place: str) -> str | int:
    if isinstance(row, Unreadable):
        raise DataError(f"{place}: {row.message}")
    if isinstance(row, dict):
        text, tokens = row.get("text"), row.get("output_tokens")
        if isinstance(text, str):
            return text
        if isinstance(tokens, int) and not isinstance(tokens, bool) and tokens >= 0:
            return tokens
    raise DataError(f"{place}: should have `text` (a string) or `output_tokens` (a number from 0 on)")
