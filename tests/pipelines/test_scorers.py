from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrix.errors import DataError
from matrix.pipelines.scorers import ANSWER_LIMIT, SCORERS, Verdict, to_score


def judge(kind: str, text: str, reference: str) -> Verdict:
    scorer = SCORERS[kind]
    return scorer.judge(text, scorer.gold(reference))


def answer(kind: str, text: str) -> str | None:
    return judge(kind, text, {"choice": "A"}.get(kind, "1")).answer


# --- number -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5 and 6.\n#### 1,234", "1234"),
        ("#### Step 1\n5 + 5 = 10\n#### -2.", "-2"),
        ("#### **$18**", "18"),
        ("The answer is $18.", "18"),
        ("The final answer is approximately 18 dollars, not 20.", "18"),
        ("The answer is 3 + 4 = 7. Check: 7 - 4 = 3", "7"),
        ("Answer:\n\n\\[ 42 \\]", "42"),
        ("**Final answer**: 25%", "25"),
        ("So \\boxed{12} of the 30 apples", "12"),
        ("\\boxed{3} no, \\boxed{x = 4} is the answer to 5", "4"),
        ("\\boxed{\\frac{3}{4}}", "0.75"),
        ("$\\boxed{1\\frac{1}{2}}$", "1.5"),
        ("\\boxed{10{,}000\\text{ m}}", "10000"),
        ("\\boxed{12", "12"),
        ("He has 3 apples and 4 pears.", "4"),
        ("It costs $1,000,000.00.", "1000000"),
        ("-$5.50", "-5.5"),
        ("$-5.50", "-5.5"),
        ("\N{MINUS SIGN}3", "-3"),
        ("10-5", "5"),
        ("x - 3", "3"),
        ("(2)-3", "3"),
        ("x=-3", "-3"),
        (".5", "0.5"),
        ("1/3", "1/3"),
        ("2 1/2 cups", "2.5"),
        ("6/2", "3"),
        ("1e5", "100000"),
        ("7.0", "7"),
        ("CO2 and v1", None),
        ("3/0", None),
        ("no number", None),
        ("", None),
        ("9" * 5000, None),
    ],
)
def test_number_reads_the_stated_answer_and_says_it_canonically(text: str, expected: str | None) -> None:
    assert answer("number", text) == expected


@pytest.mark.parametrize(
    ("reference", "text", "right"),
    [
        ("48/2 = <<48/2=24>>24 clips.\n#### 72", "#### 72", True),
        ("#### 1,234", "1234.0", True),
        ("$18", "18", True),
        ("-3", "3", False),
        ("3/4", "0.75", True),
        ("1/3", "0.3333", False),
        ("72", "I don't know", False),
    ],
)
def test_number_compares_exactly(reference: str, text: str, right: bool) -> None:
    assert judge("number", text, reference).value == float(right)


@given(st.fractions(max_denominator=10**6).filter(lambda value: abs(value) < 10**12), st.booleans())
def test_number_reads_back_every_number_it_writes(value: Fraction, commas: bool) -> None:
    whole = value.denominator == 1 and commas
    text = f"{value.numerator:,}" if whole else str(value)
    verdict = judge("number", f"The answer is {text}.", str(value))
    assert verdict.value == 1
    assert verdict.answer is not None
    assert Fraction(verdict.answer) == value


@pytest.mark.parametrize(
    ("kind", "reference"),
    [
        ("number", ""),
        ("number", "seven"),
        ("number", "#### "),
        ("number", "3 apples"),
        ("exact", " ."),
        ("contains", ""),
        ("choice", "K"),
        ("choice", "10"),
        ("choice", ""),
        ("math", "  "),
    ],
)
def test_a_reference_without_an_answer_is_a_data_error(kind: str, reference: str) -> None:
    with pytest.raises(DataError, match="reference"):
        SCORERS[kind].gold(reference)


# --- exact, contains --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reference", "exact", "contains"),
    [
        ("Paris.", "paris", True, True),
        ("**Paris**", "Paris", True, True),
        ("_Paris_ ", "Paris", True, True),
        ("It's Paris, France", "Paris", False, True),
        ("New   York\n", "new york", True, True),
        ("Parisian", "Paris", False, False),
        ("5 apples", "5", False, True),
        ("It is 5.", "5", False, True),
        ("15", "5", False, False),
        ("2.5", "5", False, False),
        ("2,500", "2", False, False),
        ("-5", "5", False, False),
        ("1,000", "1,000", True, True),
        ("\N{FULLWIDTH DIGIT FIVE}", "5", True, True),
        ("Use C++!", "C++", False, True),
        ("", "5", False, False),
    ],
)
def test_exact_and_contains(text: str, reference: str, exact: bool, contains: bool) -> None:
    assert judge("exact", text, reference).value == float(exact)
    assert judge("contains", text, reference).value == float(contains)


def test_texts_that_contain_the_reference_give_the_same_answer_and_others_their_own() -> None:
    assert judge("contains", "It's Paris.", "Paris").answer == "paris"
    assert judge("contains", "PARIS", "Paris").answer == "paris"
    assert judge("contains", "London!", "Paris").answer == "london"
    assert judge("contains", "...", "Paris").answer is None


def test_long_answers_are_cut() -> None:
    assert judge("exact", "word " * 1000, "word").answer == ("word " * 1000)[:ANSWER_LIMIT]


# --- choice -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is (C).", "C"),
        ("The answer is A because B is wrong.", "A"),
        ("Answer: B", "B"),
        ("**Answer:** **D**", "D"),
        ("the correct option is (e)", "E"),
        ("The answer is (A). Wait, no. The answer is (B).", "B"),
        ("Option A: one\nOption B: two\nAnswer: A", "A"),
        ("\\boxed{\\text{D}}", "D"),
        ("The answer is $\\boxed{C}$", "C"),
        ("The answer is (A), so \\boxed{B}", "B"),
        ("B", "B"),
        (" b.", "B"),
        ("(c)", "C"),
        ("(B) Paris", "B"),
        ("A or J", "J"),
        ("A dog. I like it.", None),
        ("The answer is a dog", None),
        ("The answer is Arthur", None),
        ("I'm unsure", None),
        ("K", None),
        ("", None),
    ],
)
def test_choice(text: str, expected: str | None) -> None:
    assert answer("choice", text) == expected


@pytest.mark.parametrize("reference", ["B", "b", "(B)", "B.", "1", " 1 "])
def test_choice_takes_a_letter_or_an_index(reference: str) -> None:
    assert judge("choice", "The answer is (B)", reference) == Verdict(1.0, "B")


# --- math -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "text", "right"),
    [
        (r"\frac{1}{2}", r"so \boxed{0.5}", True),
        (r"\frac{1}{2}", "The answer is 1/2.", True),
        (r"$\frac{1}{2}$", r"\boxed{\dfrac{2}{4}}", True),
        (r"\boxed{7}", "$7$", True),
        (r"\left( 3, \frac{\pi}{2} \right)", r"\boxed{(3, \pi/2)}", True),
        (r"p - q", r"\boxed{-(q - p)}", True),
        (r"6 - 5i", r"\boxed{-5i + 6}", True),
        (r"\text{Evelyn}", r"\boxed{\text{Evelyn}}", True),
        (r"1,2", r"\boxed{2, 1}", True),
        ("5", r"\boxed{x = 5}", True),
        (r"10\%", r"\boxed{10\%}", True),
        (r"10\%", r"\boxed{10}", True),
        (r"\$18.90", r"\boxed{18.90}", True),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\boxed{\begin{pmatrix} 1 \\ 2 \end{pmatrix}}", True),
        (r"3\sqrt{13}", r"\boxed{\sqrt{117}}", True),
        ("2", r"1 is wrong, \boxed{2}, surely not $3$", True),
        ("3", r"\boxed{4}", False),
        ("3", "I can't say", False),
        ("3", "", False),
    ],
)
def test_math_compares_by_value(reference: str, text: str, right: bool) -> None:
    assert judge("math", text, reference).value == float(right)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([r"\boxed{0.5}", r"\boxed{\frac{1}{2}}", r"$\frac{2}{4}$", "The answer is 1/2"], "1/2"),
        ([r"\boxed{5}", r"\boxed{x = 5}", r"\boxed{5.0}", r"\boxed{2 + 3}"], "5"),
        ([r"\boxed{\frac{1}{\sqrt{2}}}", r"\boxed{\frac{\sqrt{2}}{2}}"], "sqrt(2)/2"),
        ([r"\boxed{\{1, 2\}}", r"\boxed{\{2, 1\}}"], "{1, 2}"),
        (["no number here"], None),
    ],
)
def test_math_answers_are_canonical(texts: list[str], expected: str | None) -> None:
    assert {judge("math", text, "99").answer for text in texts} == {expected}


def test_math_answers_too_long_to_print_fall_back_to_their_text() -> None:
    assert judge("math", r"\boxed{2^{100000}}", "1").answer == "2^{100000}"


# --- all --------------------------------------------------------------------------------------------------------------

REPEATED = ["1", "1,", "1 ", "1/", "1.", "-", "$-", "#", "answer is ", "answer", "\\boxed{", "\\frac{", "A ", "(", "\n"]


@pytest.mark.parametrize("kind", ["number", "exact", "contains", "choice"])
@pytest.mark.parametrize("piece", REPEATED)
def test_time_is_linear_for_a_model_that_repeats_itself(kind: str, piece: str) -> None:
    text = "answer:" + piece * (200_000 // len(piece)) + "x"
    began = time.process_time()
    judge(kind, text, "A" if kind == "choice" else "1")
    assert time.process_time() - began < 2


@pytest.mark.parametrize("kind", sorted(set(SCORERS) - {"math"}))
@given(text=st.text())
def test_no_text_upsets_a_scorer(kind: str, text: str) -> None:
    verdict = judge(kind, text, "A" if kind == "choice" else "1")
    assert 0 <= verdict.value <= 1
    assert verdict.value == 0 or verdict.answer is not None


def test_to_score() -> None:
    score = to_score([Verdict(1.0, "4"), Verdict(0.0, None)])
    assert (score.values, score.answers) == ([1.0, 0.0], ["4", None])
