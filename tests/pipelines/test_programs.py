from __future__ import annotations

import textwrap
import time

import pytest

from matrix.pipelines.programs import before, last_defined, program

CONTEXT = '''import math


def helper(x):
    """ Doubles. """
    return x * 2


def wanted(numbers, limit=3):
    """ Sum of those below the limit.
    >>> wanted([1, 5])
    1
    """
'''
BODY = """    total = 0
    for number in numbers:
        if number < limit:
            total += number
    return total
"""
WHOLE = CONTEXT[CONTEXT.index("def wanted") :] + BODY
TEST = "def check(candidate):\n    assert candidate([1, 2, 5]) == 3\n"


def result(code: str | None, call: str = "wanted([1, 2, 5])") -> object:
    assert code is not None
    names: dict[str, object] = {}
    exec(code, names)
    return eval(call, names)


ANSWERS = {
    "rest": BODY,
    "rest after an empty line": "\n" + BODY,
    "rest, and then more": f"{BODY}\n\ndef main():\n    print(",
    "rest, and then a fence": f"{BODY}```\n\nThis sums them up.",
    "whole in a block": f"Here it is:\n\n```python\n{WHOLE}```\n\nIt sums them up.",
    "head and whole in a block": f"```python\n{CONTEXT}{BODY}```",
    "block without a label": f"```\n{WHOLE}```",
    "block that was cut off": f"```python\n{WHOLE}",
    "block in a list": "1. Like this:\n\n" + textwrap.indent(f"```python\n{WHOLE}```\n", "   ") + "\n2. Done.",
    "rest in a block": f"The body:\n```python\n{BODY}```",
    "rest at the margin": f"```python\n{textwrap.dedent(BODY)}```",
    "rest whose first line is at the margin": BODY.strip(),
    "one statement at the margin": "return sum(n for n in numbers if n < limit)",
    "no block at all": f"Sure! Here is the function:\n\n{WHOLE}\nIt sums up what is below the limit.",
    "the last of two versions": f"```python\ndef wanted(n): return 0\n```\nBetter:\n```python\n{WHOLE}```",
    "usage in a block after it": f"```python\n{WHOLE}```\nUse it:\n```python\nprint(wanted([1]))\n```",
    "a shell block before it": f"```bash\npip install numpy\n```\n```python\n{WHOLE}```",
    "thought about it": f"<think>\n```python\ndef wanted(n): return 0\n```\n</think>\n```python\n{WHOLE}```",
    "a space before it": f" Here it is:\n```python\n{WHOLE}```",
    "windows lines": f"```python\r\n{WHOLE}```".replace("\n", "\r\n"),
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
@pytest.mark.parametrize("entry_point", ["wanted", ""])
def test_the_program_that_an_answer_means(answer: str, entry_point: str) -> None:
    assert result(program(answer, context=CONTEXT, entry_point=entry_point, test=TEST)) == 3


def test_a_whole_function_finds_the_helpers_and_imports_of_the_context() -> None:
    answer = "```python\ndef wanted(n):\n    return helper(math.floor(n))\n```"
    assert result(program(answer, context=CONTEXT, entry_point="wanted"), "wanted(1.5)") == 2


def test_without_a_context_the_test_says_what_is_wanted() -> None:
    test = "assert area(2) == 4\nassert area(3) == 9"
    answer = "```python\ndef area(x):\n    return square(x)\n\ndef square(x):\n    return x * x\n```\nTry:\n```\narea(2)\n```"
    assert result(program(answer, test=test), "area(3)") == 9
    assert result(program("area = lambda x: x * x", test=test), "area(3)") == 9
    # What doesn't define it is the program nevertheless: the test will say so.
    assert program("```python\nother = 1\n```", test=test) == "other = 1\n"


def test_strings_over_lines_may_stand_at_the_margin() -> None:
    body = '    text = """\nThe answer\nis here\n"""\n    return text\n'
    assert result(program(body, context="def wanted():\n"), "wanted()") == "\nThe answer\nis here\n"
    answer = f"Here:\n\ndef wanted():\n{body}\nThat is all."
    assert result(program(answer, test="assert wanted()"), "wanted()") == "\nThe answer\nis here\n"


@pytest.mark.parametrize("text", ["", " \n ", "```python\n```", "<think>\n```python\nx = 1\n```\n</think>"])
@pytest.mark.parametrize("context", ["", CONTEXT])
def test_no_program(text: str, context: str) -> None:
    assert program(text, context=context, test=TEST) is None


def test_prose_is_no_program() -> None:
    assert program("I can't do that, sorry.", test="assert area(2) == 4") is None


def test_what_comes_before_the_function() -> None:
    assert before(CONTEXT, "wanted") == before(CONTEXT) == CONTEXT[: CONTEXT.index("def wanted")]
    assert before("", "wanted") == before(CONTEXT, "missing") == ""
    assert last_defined(CONTEXT) == "wanted"
    assert last_defined("x = 1") == ""


@pytest.mark.parametrize(
    "text", ["```" * 200_000, "```\n" * 100_000, " " * 400_000, "x = " * 100_000, "def wanted(\n" * 50_000, "\n" * 400_000,
             "a" * 400_000, '"""\n' * 100_000, "(" * 400_000]
)  # fmt: skip
def test_hostile_answers_take_no_time(text: str) -> None:
    began = time.process_time()
    program(text, context=CONTEXT, entry_point="wanted", test=TEST)
    program(text, test=TEST)
    assert time.process_time() - began < 2
