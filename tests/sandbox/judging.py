"""A judge and the program that it judges, in two processes of their own, without a sandbox around them."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from typing import NamedTuple

import matrix.sandbox

PASSED, FAILED, GONE = 0, 1, 2

# The program's end is `candidate.serve`, or an attacker with the same socket.
PAIR = """
import json, os, resource, signal, socket, sys
sys.path.insert(0, sys.argv[1])
from inside import candidate, judge
asked = json.load(sys.stdin)
ours, theirs = socket.socketpair()
pid = os.fork()
if not pid:
    ours.close()
    try:
        if asked["attack"]:
            exec(asked["code"], {"channel": theirs})
        else:
            candidate.serve(asked["code"], theirs)
    except BaseException:
        os._exit(1)
    os._exit(0)
theirs.close()
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
code = judge.judge(asked["prelude"], asked["test"], asked["entry_point"], ours)
sys.stderr.flush()
os.kill(pid, signal.SIGKILL)
os._exit(code)
"""


class Verdict(NamedTuple):
    code: int
    why: str


def verdict(
    code: str, test: str, entry_point: str | None = None, prelude: str = "", *, attack: bool = False
) -> Verdict:
    asked = {"code": textwrap.dedent(code), "test": textwrap.dedent(test), "attack": attack}
    asked |= {"entry_point": entry_point, "prelude": textwrap.dedent(prelude)}
    ended = subprocess.run(
        [sys.executable, "-I", "-S", "-c", PAIR, *matrix.sandbox.__path__],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Verdict(ended.returncode, ended.stderr)
