"""Programs that lie to their judge, or attack it: none of them passes."""

from __future__ import annotations

import pytest

from tests.sandbox.judging import FAILED, GONE, verdict


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("def f(:", "SyntaxError"),
        ("raise ValueError('no')", "ValueError: no"),
        ("import os; os._exit(0)", "it is gone"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "it is gone"),
        ("def f(): import os; os._exit(0)", "it is gone"),
        ("def f(): raise SystemExit(0)", "it is gone"),
        ("import ctypes\ndef f(): ctypes.string_at(0)", "it is gone"),
    ],
)
def test_a_program_that_is_gone_does_not_pass(code: str, why: str) -> None:
    for test in ("assert f() == 1", "try:\n    assert f() == 1\nexcept:\n    pass\n"):
        code_, said = verdict(code, test)
        assert code_ == GONE
        assert why in said, said


FORGERIES = {
    "equals everything": "class X:\n    def __eq__(self, other): return True\n    __ne__ = lambda *_: False\ndef f(x): return X()",
    "equals everything, as a list": "class X(list):\n    def __eq__(self, other): return True\ndef f(x): return X()",
    "equals everything, as a number": "class X(int):\n    def __eq__(self, other): return True\ndef f(x): return X()",
    "equals everything, as a class": "class M(type):\n    def __eq__(self, other): return True\n    __hash__ = type.__hash__\nclass X(metaclass=M): pass\ndef f(x): return X",
    "differs from nothing": "class X:\n    def __sub__(self, other): return 0.0\n    __rsub__ = __sub__\n    def __abs__(self): return 0\n    __lt__ = __le__ = __contains__ = lambda *_: True\ndef f(x): return X()",
    "assert gone": "import builtins\nbuiltins.AssertionError = KeyError\nbuiltins.check = lambda *_: True\ndef f(x): return 0",
    "another module": "import sys\nsys.modules['inside.judge'].judge = lambda *_: 0\nsys.modules['inside.judge'].PASSED = 1\ndef f(x): return 0",
    "a printed marker": "print('PASSED', 'ok', 0)\ndef f(x):\n    print('PASSED')\n    return 0",
    "at exit": "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): return 0",
    "a thread that goes on": "import threading, os\nthreading.Thread(target=lambda: [None for _ in iter(int, 1)], daemon=True).start()\ndef f(x): return 0",
    "an end of the iteration": "def f(x): raise StopIteration",
    "an end of the generator": "def f(x): raise GeneratorExit",
    "a keyboard's interrupt": "def f(x): raise KeyboardInterrupt",
    "the socket": "import gc, socket\ndef f(x):\n    for one in gc.get_objects():\n        if isinstance(one, socket.socket):\n            one.sendall(b'PASSED' * 100)\n    return 0",
    "the socket, closed": "import gc, socket\nfor one in gc.get_objects():\n    if isinstance(one, socket.socket):\n        one.close()\ndef f(x): return 0",
    "names of the test's": "def check(c): pass\ndef all(x): return True\ndef print(*x): pass\ndef isinstance(*x): return True\ndef map(*x): return []\ndef f(x): return 0",
    "an argument that becomes what is expected": "def f(x):\n    x.clear()\n    return 0",
}


@pytest.mark.parametrize("code", FORGERIES.values(), ids=FORGERIES)
@pytest.mark.parametrize(
    "test",
    [
        "def check(f):\n    assert f([1]) == 5\n    assert f([1]) == [2]\n    assert f([2]) == object\n",
        "def check(f):\n    assert abs(f([1]) - 5) < 1e-6\n",
        "def check(f):\n    assert all(map(lambda case: f(case[0]) == case[1], [([1], 5), ([2], 6)]))\n",
        "def check(f):\n    for x, y in [([1], 5), ([2], [7])]:\n        if f(x) != y:\n            raise ValueError\n",
        "def check(f):\n    assert 5 in f([1])\n",
    ],
)
def test_a_forged_answer_does_not_pass(code: str, test: str) -> None:
    assert verdict(code, test, "f").code in (FAILED, GONE)


def test_a_failed_assertion_can_not_be_swallowed() -> None:
    swallows = "def f(g):\n    try:\n        g(0)\n    except BaseException:\n        pass\n    return 1"
    test = "def g(x):\n    assert x == 1\nassert f(g) == 1"
    assert verdict(swallows, test) == (FAILED, "AssertionError\nline 2 of the test: assert x == 1\n")
    manager = "class F:\n    def __enter__(self): return 0\n    def __exit__(self, *error): return True\n"
    assert verdict(manager, "with F() as x:\n    assert x == 1").code == FAILED


ANSWER = """
import json, struct
def hear():
    size = struct.unpack("!I", channel.recv(4, 0x100))[0]
    return json.loads(channel.recv(size, 0x100)) if size else None
def say(message):
    body = message if isinstance(message, bytes) else json.dumps(message).encode()
    channel.sendall(struct.pack("!I", len(body)) + body)
hear()
"""
F = 'say(["value", {"mine": [7, "function"]}, {}])\nhear()\n'

ATTACKS = {
    "nothing": "",
    "no message": ANSWER + "say(b'PASSED')",
    "not even a length": "channel.sendall(b'\\0\\0')",
    "an empty message": ANSWER + "say(b'')",
    "an empty list": ANSWER + "say([])",
    "a list as its kind": ANSWER + "say([[], 1, 2])",
    "another length": ANSWER + "say(['value', 1])",
    "a huge length": ANSWER + "channel.sendall(b'\\xff' * 4)",
    "a deep message": ANSWER + "say(b'[' * 5_000_000)",
    "deep data": ANSWER + F + "say(b'[\"value\",' + b'[' * 500 + b']' * 500 + b',{}]')",
    "deep tuples": ANSWER + F + "say(b'[\"value\",' + b'{\"tuple\":[' * 500 + b']}' * 500 + b',{}]')",
    "a large number": ANSWER + F + "say(b'[\"value\",' + b'9' * 100_000 + b',{}]')",
    "not unicode": ANSWER + "say(b'\\xff\\xfe[')",
    "an unknown kind": ANSWER + F + "say(['value', {'pickle': ['x']}, {}])",
    "two kinds": ANSWER + F + "say(['value', {'tuple': [], 'set': []}, {}])",
    "no parts": ANSWER + F + "say(['value', {'tuple': 5}, {}])",
    "parts of another kind": ANSWER + F + "say(['value', {'set': [[1]]}, {}])",
    "a fraction of nothing": ANSWER + F + "say(['value', {'Fraction': [1, 0]}, {}])",
    "a class that isn't lent": ANSWER + F + "say(['value', {'yours': [140000000]}, {}])",
    "a builtin": ANSWER + F + "say(['value', {'builtin': ['exit']}, {}])",
    "an exception that ends": ANSWER + F + "say(['raise', ['SystemExit'], [0], {}])",
    "an exception of no name": ANSWER + F + "say(['raise', [], [0], {}])",
    "an exception of a bad name": ANSWER + F + "say(['raise', [5, 'ValueError'], [0], {}])",
    "an end of nothing": ANSWER + F + "say(['stop', {}])",
    "changes of nothing": ANSWER + F + "say(['value', 5, {'9': 1}])",
    "changes of no kind": ANSWER + F + "say(['value', 5, 'x'])",
    "a class to call": ANSWER
    + F
    + "say(['do', 'call', [{'type': ['type']}, 'X', {'tuple': []}, {'dict': []}], {'dict': []}])\nhear()",
    "what it has to call": ANSWER + F + "say(['do', 'call', [{'mine': [7, 'function']}], {'dict': []}])\nhear()",
    "an unknown request": ANSWER + F + "say(['do', 'getattr', [{'yours': [1]}, '__class__'], {'dict': []}])\nhear()",
    "a request of no kind": ANSWER + F + "say(['do', [], {}, 5])\nhear()",
    "answers beforehand": ANSWER + "say(['value', {'mine': [7, 'function']}, {}])\n" * 50,
    "answers without an end": ANSWER + F + "while True: say(['value', {'mine': [7, 'iterator']}, {}])",
    "an answer without an end": ANSWER
    + F
    + "channel.sendall(b'\\0\\x80\\0\\0')\nwhile True: channel.sendall(bytes(1 << 20))",
    "a large answer": ANSWER + F + "say(b'[\"value\",[' + b'[],' * 1_000_000 + b'[]],{}]')",
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_whatever_is_sent_does_not_pass(attack: str) -> None:
    test = "def check(f):\n    for x in (1, 2):\n        try:\n            same = f(x) == [5]\n        except Exception:\n            same = True\n        assert same\n"
    code, why = verdict(attack, test, "f", attack=True)
    assert code in (FAILED, GONE), why
    assert "Traceback" not in why
    assert len(why) < 3000


def test_only_what_was_asked_is_changed() -> None:
    # The names that are taken from the program are no list that it could write to.
    attack = (
        ANSWER
        + "say(['value', 5, {'0': 'g', '1': 'abs', '2': {'dict': [1, 2]}}])\n"
        + "hear()\nsay(['value', 5, {}])\n"
    )
    assert verdict(attack, "assert abs(f) == 6", attack=True).code == FAILED
