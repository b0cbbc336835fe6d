"""Scorers: what a text is worth against a reference. Plain functions of strings, linear in the length of the text.

A scorer reads the answer out of a model's text and says it in one canonical form, so that equal answers are equal
strings and a majority vote over samples works.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

from matrix.data.rows import Score
from matrix.errors import DataError

ANSWER_LIMIT = 200
"""Characters of an answer that are kept: long enough to tell answers apart, short enough for a million rows."""

_NUMBER_LIMIT = 100
"""Characters of a number that is still read as one; a model that repeats itself writes digits without end."""


class Verdict(NamedTuple):
    """What a scorer says of one text.

    Attributes:
        value: 0 to 1; 1 is right.
        answer: The answer in canonical form; None where none could be read (the value is then 0).
    """

    value: float
    answer: str | None


UNREAD = Verdict(0.0, None)


@dataclass(frozen=True, slots=True)
class Scorer:
    """One kind of scorer.

    Attributes:
        gold: Reads the reference of a row; cheap. Raises DataError if it holds no answer.
        judge: Judges one text against what `gold` returned. Must be importable by name, to run in another process.
        killable: Judging may hang: run it where it can be killed (see `scoring_pool`).
    """

    gold: Callable[[str], Any]
    judge: Callable[[str, Any], Verdict]
    killable: bool = False


def to_score(verdicts: Sequence[Verdict]) -> Score:
    """The verdicts on a row's texts, in the form that rows carry."""
    return Score([verdict.value for verdict in verdicts], [verdict.answer for verdict in verdicts])


def _gold_error(kind: str, reference: str, wanted: str) -> DataError:
    return DataError(
        f"scorer {kind}: the reference {reference[:80]!r} is not {wanted}; "
        "check the template pipeline.scorers.N.reference and the row's columns"
    )


# --- number -----------------------------------------------------------------------------------------------------------

_NUMBER = re.compile(
    r"""
    (?P<sign>(?<![\w)\]}])-)?               # with something before it, it subtracts
    (?<![A-Za-z_0-9])(?<![0-9]\.)
    (?:
        (?:(?P<units>\d++)\ (?=\d))?        # 1 3/4
        (?P<over>\d++(?:\.\d++)?)\ ?/\ ?(?P<under>\d++(?:\.\d++)?)
      |
        (?P<plain>(?:(?:\d{1,3}(?:,\d{3})++(?!\d)|\d++)(?:\.\d++)?|\.\d++)(?:[eE][-+]?\d{1,2}(?!\d))?)
    )
    """,
    re.VERBOSE | re.ASCII,
)
_ANSWER_IS = re.compile(r"answer[^.\n:=]{0,60}?(?:\bis\b|:|=)", re.IGNORECASE)
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s?\{([^{}]{1,40})\}\s?\{([^{}]{1,40})\}")
_SENTENCE_END = re.compile(r"\n|[.!?](?:\s|$)")
_EQUALS = re.compile(r"=|≈|\\approx")


def _gold_number(reference: str) -> Fraction:
    text = _plain(reference.rpartition("####")[2]).strip(" %.\n")
    match = _NUMBER.fullmatch(text)
    number = _value(match) if match else None
    if number is None:
        raise _gold_error("number", reference, "a number, nor text with a number after ####")
    return number


def _judge_number(text: str, gold: Fraction) -> Verdict:
    answer = _read_number(_plain(text))
    return UNREAD if answer is None else Verdict(float(answer == gold), _canonical_number(answer))


def _read_number(text: str) -> Fraction | None:
    """The number that a text states: after ####, boxed, after "answer is", or else the last one it mentions."""
    after_hashes = _NUMBER.match(text.rpartition("####")[2].lstrip(" *")) if "####" in text else None
    if after_hashes:
        return _value(after_hashes)
    for stated in (_last_boxed(text), _after_last(_ANSWER_IS, text)):
        match = _NUMBER.search(_EQUALS.split(stated)[-1]) if stated else None
        if match:
            return _value(match)
    numbers = list(_NUMBER.finditer(text))
    return _value(numbers[-1]) if numbers else None


def _plain(text: str) -> str:
    """Takes out what hides a number: currency signs, LaTeX fractions and spacing, the typographic minus."""
    for hiding, plain in (("\N{MINUS SIGN}", "-"), ("{,}", ","), ("\\!", ""), ("\\,", ""), ("\\$", "$")):
        text = text.replace(hiding, plain)
    text = re.sub(r"-[$€£]", "-", text)
    text = re.sub(r"[$€£]", " ", text)
    return _LATEX_FRACTION.sub(r" \1/\2", text)


def _value(match: re.Match[str]) -> Fraction | None:
    if len(match[0]) > _NUMBER_LIMIT:
        return None
    sign = -1 if match["sign"] else 1
    if match["plain"]:
        return sign * Fraction(match["plain"].replace(",", ""))
    under = Fraction(match["under"])
    return sign * (int(match["units"] or 0) + Fraction(match["over"]) / under) if under else None


def _canonical_number(number: Fraction) -> str:
    """A decimal where that is exact, else a fraction: 18, 0.75, 1/3."""
    decimal = Decimal(number.numerator) / Decimal(number.denominator)
    return f"{decimal.normalize():f}" if Fraction(decimal) == number else str(number)


def _last_boxed(text: str) -> str | None:
    r"""What is in the last \boxed{...}; None if there is none or it was cut off."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    start += len("\\boxed{")
    depth = 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start:place]
    return None


def _after_last(pattern: re.Pattern[str], text: str) -> str | None:
    """The rest of the sentence after the pattern's last match; the answer may stand on a line of its own."""
    end = max((match.end() for match in pattern.finditer(text)), default=None)
    return None if end is None else _SENTENCE_END.split(text[end:].lstrip(" \t\n*:\\[("), maxsplit=1)[0]


# --- exact, contains --------------------------------------------------------------------------------------------------

_MARKDOWN = str.maketrans("*_`", "   ")


def _gold_text(reference: str) -> str:
    gold = _normalised(reference)
    if not gold:
        raise _gold_error("exact or contains", reference, "a word")
    return gold


def _judge_exact(text: str, gold: str) -> Verdict:
    answer = _normalised(text)
    return Verdict(float(answer == gold), answer[:ANSWER_LIMIT]) if answer else UNREAD


def _judge_contains(text: str, gold: str) -> Verdict:
    answer = _normalised(text)
    if not answer:
        return UNREAD
    # The space lets the look-behind see a sign at the very beginning.
    found = _whole_words(gold).search(f" {answer}") is not None
    return Verdict(float(found), (gold if found else answer)[:ANSWER_LIMIT])


def _normalised(text: str) -> str:
    """Case, width, white space, Markdown emphasis and the punctuation around it are not part of an answer."""
    words = unicodedata.normalize("NFKC", text).casefold().translate(_MARKDOWN).split()
    return " ".join(words).strip(" .,;:!?\"'()[]…“”‘’")  # noqa: RUF001 - typographic quotes are meant


@lru_cache(maxsize=1024)
def _whole_words(gold: str) -> re.Pattern[str]:
    """Finds the gold answer, but not as a part of a longer word or number: 5 is in "5 apples", not in 15, 2.5 or -5."""
    number = gold[0].isdigit()
    before = r"(?<!\w)(?<!\d[.,])(?<!\s-)" if number else r"(?<!\w)"
    return re.compile(before + re.escape(gold) + r"(?!\w)(?![.,]\d)")


# --- choice -----------------------------------------------------------------------------------------------------------

_STATED_CHOICE = re.compile(
    r"""
    (?i:answer|choice|option)[^.\n:=]{0,40}?(?:(?i:\bis\b)|:|=)[\s*_"'`$]{0,8}
    (?:\\boxed\{)?(?:\\(?:text|textbf|mathrm|mathbf)\{)?
    (?: \(?(?P<upper>[A-J])(?![\w'’]) | \((?P<lower>[a-j])\) )
    """,  # noqa: RUF001 - a typographic apostrophe is meant
    re.VERBOSE,
)
_BOXED_CHOICE = re.compile(
    r"\\boxed\{\s?(?:\\(?:text|textbf|mathrm|mathbf)\s?\{)?\s?\(?(?P<letter>[A-Ja-j])(?![A-Za-z0-9])"
)
_LONE_CHOICE = re.compile(r"(?<![\w'’+-])(?P<letter>[A-J])(?![\w'’+-])")  # noqa: RUF001
_GOLD_CHOICE = re.compile(r"\(?(?P<letter>[A-Ja-j])[).:]{0,2}|(?P<index>[0-9])")


def _gold_choice(reference: str) -> str:
    match = _GOLD_CHOICE.fullmatch(reference.strip())
    if match is None:
        raise _gold_error("choice", reference, "a letter from A to J or an index from 0 to 9")
    return match["letter"].upper() if match["letter"] else "ABCDEFGHIJ"[int(match["index"])]


def _judge_choice(text: str, gold: str) -> Verdict:
    answer = _read_choice(text)
    return UNREAD if answer is None else Verdict(float(answer == gold), answer)


def _read_choice(text: str) -> str | None:
    whole = text.strip(" \n\t.*():")
    if len(whole) == 1 and whole.upper() in "ABCDEFGHIJ":
        return whole.upper()
    stated = [(match.end(), match["upper"] or match["lower"]) for match in _STATED_CHOICE.finditer(text)]
    stated += [(match.end(), match["letter"]) for match in _BOXED_CHOICE.finditer(text)]
    if stated:
        return max(stated)[1].upper()
    lone = [match["letter"] for match in _LONE_CHOICE.finditer(text) if not _is_a_word(match)]
    return lone[-1] if lone else None


def _is_a_word(match: re.Match[str]) -> bool:
    """The article "A" and the pronoun "I" are followed by a word."""
    return match["letter"] in "AI" and re.match(r"\s+[a-z]", match.string[match.end() : match.end() + 8]) is not None


# --- math -------------------------------------------------------------------------------------------------------------


def _gold_math(reference: str) -> str:
    if not reference.strip():
        raise _gold_error("math", reference, "an expression")
    delimited = any(mark in reference for mark in ("\\boxed{", "\\(", "\\[")) or re.search(r"(?<!\\)\$", reference)
    return reference if delimited else f"\\boxed{{{reference}}}"


def _judge_math(text: str, gold: str) -> Verdict:
    """Compares by value, with math-verify.

    Its own time limits are off: they are alarms, which only ring in a main thread and never inside the C code of a
    big integer's power (`math_verify/utils.py`, 0.9).
    """
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    boxed_first = LatexExtractionConfig(boxed_match_priority=0)
    found = parse(_without_percent(text), [boxed_first, ExprExtractionConfig()], parsing_timeout=None)
    if not found:
        return UNREAD
    right = verify(_parsed_gold(gold), found, timeout_seconds=None)
    return Verdict(float(right), _canonical_math(found[0], str(found[-1])))


@lru_cache(maxsize=64)
def _parsed_gold(gold: str) -> list[Any]:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    boxed_first = LatexExtractionConfig(boxed_match_priority=0)
    parsed: list[Any] = parse(_without_percent(gold), [boxed_first, ExprExtractionConfig()], parsing_timeout=None)
    if not parsed:
        raise _gold_error("math", gold, "an expression that math-verify can read")
    return parsed


def _without_percent(text: str) -> str:
    r"""Drops \%, which math-verify can't parse inside \boxed; the MATH benchmark's own comparison drops it too.

    https://github.com/hendrycks/math/blob/main/modeling/math_equivalence.py (`_strip_string`)
    """
    return text.replace("\\%", "")


def _canonical_math(expression: Any, source: str) -> str:
    r"""One string for equal values where that is cheap: 1/2 for 0.5 and \frac{1}{2}, 5 for x=5.

    Args:
        expression: What math-verify parsed: a SymPy object, or a string where it is none.
        source: The text it was parsed from; the answer where SymPy can't evaluate it or it is too long to print.
    """
    import sympy

    if isinstance(expression, sympy.Eq) and expression.lhs.is_Symbol:
        expression = expression.rhs
    try:
        evaluated = sympy.nsimplify(expression.doit(), rational=True)
        return str(evaluated)[:ANSWER_LIMIT]
    except Exception:  # noqa: BLE001 - SymPy raises anything on a model's words; the answer is then just its text
        return " ".join(source.split())[:ANSWER_LIMIT]


SCORERS: dict[str, Scorer] = {
    "number": Scorer(_gold_number, _judge_number),
    "math": Scorer(_gold_math, _judge_math, killable=True),
    "exact": Scorer(_gold_text, _judge_exact),
    "contains": Scorer(_gold_text, _judge_contains),
    "choice": Scorer(_gold_choice, _judge_choice),
}
