"""The judge and the program that it judges: what goes between them, and what the verdict is."""

from __future__ import annotations

import json

import pytest

from tests.checkout import ROOT
from tests.sandbox.judging import FAILED, GONE, PASSED, verdict

IDENTITY = "def same(*args, **kwargs):\n    return args[0]\n"


@pytest.mark.parametrize(
    "value",
    [
        "[None, True, -1, 1.5, float('inf'), -0.0, 'é\\ud800', 1 + 2j, b'\\x00\\xff', bytearray(b'x')]",
        "[2 ** 64, -(10 ** 5000), 2 ** 63, -(2 ** 63)]",
        "[(), (1, (2,)), {1, 2}, frozenset({(1, 2)}), range(1, 10, 2), [[], [[]]]]",
        "{'a': {1: None, (1, 2): [3]}, None: {}}",
        "[Fraction(1, 3), Decimal('1.10'), datetime.date(2026, 1, 2), datetime.timedelta(hours=1)]",
        "[deque([1, [2]]), Counter('hello'), OrderedDict(b=1, a=2)]",
        "[int, list, type, ValueError]",
    ],
)
def test_plain_data_is_the_same_after_both_ways(value: str) -> None:
    prelude = """
        import datetime
        from collections import Counter, OrderedDict, deque
        from decimal import Decimal
        from fractions import Fraction
    """
    test = f"value = {value}\nassert same(value) == value\nassert type(same(value)) is type(value)"
    assert verdict(IDENTITY, test, prelude=prelude) == (PASSED, "")


def test_other_kinds_of_data_come_as_what_they_are() -> None:
    code = """
        import collections, enum
        class Color(enum.IntEnum):
            RED = 1
        Point = collections.namedtuple("Point", "x y")
        def values():
            table = collections.defaultdict(list)
            table["a"].append(1)
            return [Color.RED, Point(1, 2), table]
    """
    assert verdict(code, "assert values() == [1, (1, 2), {'a': [1]}]; assert type(values()[2]) is dict") == (PASSED, "")
    assert verdict(IDENTITY, "import math; assert math.isnan(same(float('nan')))") == (PASSED, "")


def test_what_a_function_changes_of_its_arguments_is_changed() -> None:
    code = """
        def change(rows, table, *, more):
            rows.sort()
            rows[0].append("new")
            table["n"]["deep"].add(2)
            del table["gone"]
            more[:] = []
    """
    test = """
        inner = [1]
        rows, table, more = [[2], inner], {"n": {"deep": {1}}, "gone": 0}, [1]
        change(rows, table, more=more)
        assert rows == [[1, "new"], [2]], rows
        assert table == {"n": {"deep": {1, 2}}} and more == []
    """
    assert verdict(code, test) == (PASSED, "")


def test_objects_are_called_looked_into_and_iterated_over() -> None:
    code = """
        import contextlib
        class Stack:
            limit = 3
            def __init__(self, items=()):
                self.items = list(items)
            def push(self, item):
                if len(self.items) == self.limit:
                    raise OverflowError("full")
                self.items.append(item)
                return self
            def __len__(self): return len(self.items)
            def __iter__(self): return iter(self.items)
            def __getitem__(self, place): return self.items[place]
            def __setitem__(self, place, item): self.items[place] = item
            def __str__(self): return "stack"
        class Node:
            def __init__(self, next=None): self.next = next
        def count():
            number = 0
            while True:
                yield number
                number += 1
        async def later(x):
            return x + 1
        @contextlib.contextmanager
        def opened():
            yield 7
        first = Node(); second = Node(first)
    """
    test = """
        import asyncio, itertools
        stack = Stack([1])
        assert stack.push(2) is stack and len(stack) == 2 and list(stack) == [1, 2] and 2 in stack and 3 not in stack
        stack[0] = 5
        stack.extra = {"a": 1}
        assert stack[0] == 5 and stack[-1] == 2 and stack.items == [5, 2] and stack.extra == {"a": 1}
        assert str(stack) == f"{stack}" == "stack" and Stack.limit == 3 and Stack.__name__ == "Stack"
        assert isinstance(stack, Stack) and not isinstance([], Stack) and not isinstance(first, Stack)
        assert bool(stack) and not Stack()
        assert not hasattr(stack, "nothing") and getattr(stack, "nothing", 1) == 1
        assert first.next is None and second.next is first and second.next == first and second != first
        assert list(itertools.islice(count(), 4)) == [0, 1, 2, 3]
        numbers = count()
        assert [next(numbers), next(numbers)] == [0, 1] and list(zip(numbers, "ab")) == [(2, "a"), (3, "b")]
        assert asyncio.run(later(1)) == 2
        with opened() as seven:
            assert seven == 7
        stack.push(1)
        try:
            stack.push(1)
        except OverflowError as error:
            assert str(error) == "full"
        else:
            raise AssertionError
    """
    assert verdict(code, test) == (PASSED, "")


def test_functions_and_iterators_of_the_test_go_to_the_program() -> None:
    code = """
        def apply(function, *args, **kwargs): return function(*args, **kwargs)
        def total(numbers): return sum(numbers)
        def first(numbers): return next(iter(numbers))
        def twice(function): return lambda x: function(function(x))
        def kept(numbers, key, by): return sorted(filter(key, numbers), key=by)
        def safe(function):
            try:
                return function()
            except KeyError as error:
                return repr(error)
        def cached(function):
            known = {}
            def wrapped(n):
                if n not in known:
                    known[n] = function(n)
                return known[n]
            return wrapped
    """
    test = """
        import functools
        seen = []
        apply(seen.append, [1])
        assert seen == [[1]]
        assert apply(lambda x, y=1: x + y, 2, y=5) == 7 and apply(max, [1, 3]) == 3 and apply(len, "abc") == 3
        assert apply(functools.partial(pow, 2), 5) == 32
        assert total(x * x for x in range(4)) == 14 and total(iter([1, 2])) == 3
        endless = iter(int, 1)
        assert first(endless) == 0
        assert twice(lambda x: x + 1)(5) == 7
        assert kept([5, 2, 8], lambda x: x > 2, abs) == [5, 8]
        same = lambda: 1
        assert apply(lambda f: f is same, same)
        assert safe(lambda: {}["x"]) == "KeyError('x')"

        @cached
        def fib(n):
            return n if n < 2 else fib(n - 1) + fib(n - 2)

        assert fib(15) == 610
    """
    assert verdict(code, test) == (PASSED, "")


def test_exceptions_are_caught_by_their_names() -> None:
    code = """
        class OurError(ValueError): pass
        class WorseError(OurError): pass
        def builtin(): return {}["key"]
        def ours(): raise WorseError("no", 3)
        def number(): return 1 / 0
        def end(): return next(iter([]))
        def text(): return b"\\xff".decode()
        def source(): compile("1 +", "f", "exec")
    """
    test = """
        def raised(function, *kinds):
            try:
                function()
            except kinds as error:
                return error
        assert raised(builtin, KeyError).args == ("key",)
        assert raised(ours, OurError).args == ("no", 3) and raised(ours, WorseError) and raised(ours, ValueError)
        assert type(raised(ours, Exception)).__name__ == "WorseError"
        assert raised(number, ArithmeticError) and raised(end, Exception) and raised(text, UnicodeError)
        assert raised(source, SyntaxError)
    """
    assert verdict(code, test) == (PASSED, "")


def test_a_check_gets_the_entry_point() -> None:
    test = "def check(candidate):\n    assert candidate(1) == 2, 'one'\n"
    assert verdict("def add(x): return x + 1", test, "add") == (PASSED, "")
    assert verdict("def add(x): return x + 2", test, "add") == (
        FAILED,
        "AssertionError: one\nline 2 of the test: assert candidate(1) == 2, 'one'\n",
    )
    assert verdict("def other(x): return x + 1", test, "add").why.startswith("NameError: the program doesn't define")
    # Without it nothing would have been tested.
    assert verdict("def add(x): return x + 1", test).code == FAILED


def test_what_the_prelude_defines_is_not_taken_from_the_program() -> None:
    prelude = "def double(x):\n    return 2 * x\ndef solve(x):\n    '''To do.'''\n"
    test = "def check(candidate):\n    assert candidate(3) == double(3)\n"
    assert verdict("def double(x): return 6\ndef solve(x): return 6", test, "solve", prelude).code == PASSED
    assert verdict("def double(x): return 0\ndef solve(x): return 0", test, "solve", prelude).code == FAILED


def test_functions_of_the_program_may_have_the_names_of_others() -> None:
    assert verdict("def sum(a, b): return a * b", "assert sum(2, 3) == 6", "sum").code == PASSED
    assert verdict("def check(n): return False", "assert check(1) == False", "check").code == PASSED
    assert verdict("def check(n): return True", "assert check(1) == False", "check").code == FAILED
    # Not asked for: Python's.
    assert verdict("def sum(a): return 0\ndef f(): return [5]", "assert sum(f()) == 5").code == PASSED


def test_modules_are_the_tests_own() -> None:
    honest = "import math\ndef root(x): return x ** 0.5"
    assert verdict(honest, "assert math.isclose(root(4), 2)").code == PASSED
    liar = "class math:\n    isclose = lambda *_: True\ndef root(x): return 5"
    assert verdict(liar, "assert math.isclose(root(4), 2)").code == FAILED
    liar = "import cmath as math\ndef root(x): return 5"
    assert verdict(liar, "assert math.isclose(root(4), 2)").code == FAILED


def test_the_tests_of_a_main_module_are_run() -> None:
    test = """
        import unittest
        class Test(unittest.TestCase):
            def test_it(self):
                self.assertEqual(one(), 1)
        if __name__ == "__main__":
            unittest.main(argv=["test"])
    """
    assert verdict("def one(): return 1", test).code == PASSED
    assert verdict("def one(): return 2", test).code == FAILED
    assert verdict("print(1)", "raise SystemExit(3)").code == FAILED


def test_the_same_data_is_not_sent_without_an_end() -> None:
    code = "def f():\n    while True: yield 'x' * 10_000_000"
    code_, why = verdict(code, "for _ in f(): pass")
    assert (code_, why) == (GONE, "the program: it says too much\n")


def test_what_can_not_go_is_refused_with_a_reason() -> None:
    code_, why = verdict(IDENTITY, "class X: pass\nsame(X())")
    assert code_ == FAILED
    assert "TypeError: the test can't give an object of the type 'X' to the program" in why
    assert "levels deep" in verdict(IDENTITY, "x = []\nx.append(x)\nsame(x)").why
    assert "levels deep" in verdict("def f():\n    x = []\n    x.append(x)\n    return x", "f()").why
    assert "16 MB" in verdict("def f(): return 'x' * (17 << 20)", "f()").why
    assert "RecursionError" in verdict("def f(g): return g(g)", "def g(h): return f(h)\ng(g)").why


def test_a_test_that_cannot_be_read_says_where() -> None:
    assert verdict("f = 1", "x = 1\nassert f(").why.strip() == "SyntaxError: '(' was never closed (line 2 of test.py)"


def test_all_solutions_of_humaneval_pass_and_others_do_not() -> None:
    data = ROOT.parent / "shared" / "data" / "humaneval.jsonl"
    if not data.is_file():
        pytest.skip("HumanEval (../shared/data) isn't on this machine")
    for line in data.read_text().splitlines():
        row = json.loads(line)
        prompt, test, name = row["prompt"], row["test"], row["entry_point"]
        assert verdict(prompt + row["canonical_solution"], test, name, prompt) == (PASSED, ""), row["task_id"]
        assert verdict(prompt + "    return None\n", test, name, prompt).code == FAILED, row["task_id"]
