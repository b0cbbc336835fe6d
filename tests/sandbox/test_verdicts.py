"""Verdicts in the real sandbox: a program can't find its test, nor what other programs were."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from matrix.sandbox.execution import Execution
from matrix.sandbox.pool import Sandbox
from matrix.spec.services import SandboxEngine

SECRET = "expected-81723645"
TEST = f"def check(candidate):\n    assert candidate(1) == '{SECRET}'\n"
LOOK = {
    "frames": """
import sys
def search():
    found, frame = [], sys._getframe()
    while frame:
        found += [str(frame.f_locals), str(frame.f_globals)]
        frame = frame.f_back
    return "".join(found)
""",
    "collector": """
import gc
def search():
    gc.collect()
    return "".join(str(one) for one in gc.get_objects() if isinstance(one, (dict, list, tuple)))[:10**8]
""",
    "memory": """
def search():
    found = []
    for line in open("/proc/self/maps"):
        area, rights = line.split()[:2]
        begin, end = (int(number, 16) for number in area.split("-"))
        if "r" in rights and "vvar" not in line and "vsyscall" not in line:
            with open("/proc/self/mem", "rb") as memory:
                memory.seek(begin)
                try:
                    found.append(memory.read(end - begin).decode("latin-1"))
                except OSError:
                    pass
    return "".join(found)
""",
}
FIND = """
import re
def find(*_):
    # Written so that this text doesn't hold what it looks for.
    found = re.search("expected" + "-[0-9]{8}", search())
    return found[0] if found else "nothing"
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox() -> AsyncIterator[Sandbox]:
    sandbox = Sandbox(SandboxEngine(kind="sandbox", workers=1, timeout_s=20))
    await sandbox.start()
    yield sandbox
    await sandbox.close()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("how", LOOK)
async def test_a_program_can_not_find_its_test(sandbox: Sandbox, how: str) -> None:
    told = await sandbox.execute(Execution(code=LOOK[how] + FIND, test=TEST, entry_point="find"))
    assert (told.passed, told.status) == (False, "failed"), told
    # The search itself works: what is there it finds.
    given = await sandbox.execute(Execution(code=f"here = ['expected-00000000']\n{LOOK[how]}{FIND}\nprint(find())"))
    assert given.stdout == "expected-00000000\n", given


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("how", LOOK)
async def test_a_program_can_not_find_an_earlier_one(sandbox: Sandbox, how: str) -> None:
    secret = Execution(
        code=f"print('{SECRET}' * 100)",
        stdin=SECRET * 100,
        files={"a.txt": SECRET * 1000},
        outputs=["*"],
        args=[SECRET],
    )
    assert SECRET in (await sandbox.execute(secret)).stdout
    told = await sandbox.execute(Execution(code=f"{LOOK[how]}{FIND}\nprint(find())"))
    assert told.stdout == "nothing\n", told
