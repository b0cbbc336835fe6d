"""The sandbox under other conditions: as a user without cgroups, when its owner is killed, in other languages."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from matrix.sandbox.execution import Execution
from matrix.sandbox.pool import Sandbox
from matrix.spec.services import SandboxEngine
from tests.as_user import needs_root, run_as_user
from tests.sandbox.owner import start_owner


@needs_root
def test_as_a_user_without_cgroups() -> None:
    told = json.loads(run_as_user("tests.sandbox.programs_as_user"))
    assert told["plain"]["stdout"] == "2 1000\n"
    assert "unreachable" in told["network"]["exception"]
    assert json.loads(told["processes"]["stdout"])[0] == 1
    assert len(json.loads(told["processes"]["stdout"])) == 2
    assert told["memory"]["status"] == "memory"
    assert told["memory of many"]["status"] == "memory"
    assert told["memory of many"]["wall_s"] < 4
    assert told["unseen memory"]["exception"].startswith("PermissionError")
    assert told["forks"]["stdout"] == "True\n"
    assert told["writes"]["exception"].startswith("OSError: [Errno 30]")
    assert told["again"]["stdout"] == "well\n"
    assert (told["judged"]["passed"], told["judged"]["status"]) == (True, "ok")


def zygotes(owner: int) -> list[int]:
    """Processes of the sandbox that this process has started, itself or by others."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if b"inside.zygote" in (folder / "cmdline").read_bytes() and owner in ancestors(int(folder.name)):
                    found.append(int(folder.name))
            except OSError:
                continue
    return found


def ancestors(process: int) -> list[int]:
    found = []
    while process > 1:
        process = int(Path("/proc", str(process), "stat").read_text().rpartition(")")[2].split()[1])
        found.append(process)
    return found


def test_nothing_outlives_an_owner_that_is_killed() -> None:
    owner = start_owner()
    there = zygotes(owner.pid)
    # The two, and the supervisor and the program of one of them; bubblewrap itself has the words on its command line, too.
    assert len(there) >= 4
    owner.kill()
    owner.wait()
    deadline = time.monotonic() + 10
    while any(Path("/proc", str(one)).exists() for one in there):
        assert time.monotonic() < deadline, [Path("/proc", str(one), "status").read_text() for one in there]
        time.sleep(0.05)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox() -> AsyncIterator[Sandbox]:
    sandbox = Sandbox(SandboxEngine(kind="sandbox", workers=1, timeout_s=60, disk_mb=32, memory_mb=256))
    await sandbox.start()
    yield sandbox
    await sandbox.close()


LANGUAGES = {
    "bash": ("bash", 'read line; echo "$line $1 $#"; exit 4'),
    "c": (
        "gcc",
        (
            '#include <stdio.h>\nint main(int n, char **all) {\n    char line[99]; scanf("%98s", line);\n'
            '    printf("%s %s %d\\n", line, all[1], n - 1); return 4;\n}'
        ),
    ),
    "node": (
        "node",
        (
            "const line = require('fs').readFileSync(0, 'utf8').trim();\nconst given = process.argv.slice(2);\n"
            "console.log(line, given[0], given.length); process.exitCode = 4;"
        ),
    ),
    "python": ("python3", "import sys\nprint(input(), sys.argv[1], len(sys.argv) - 1)\nsys.exit(4)"),
}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("language", LANGUAGES)
async def test_a_language(sandbox: Sandbox, language: str) -> None:
    binary, code = LANGUAGES[language]
    found = shutil.which(binary)
    if found is None or not str(Path(found).resolve()).startswith(("/usr", sys.base_prefix)):
        pytest.skip(f"no {binary} below /usr")
    told = await sandbox.execute(Execution(code=code, language=language, stdin="in\n", args=["one two", "three"]))
    assert (told.stdout, told.exit_code, told.status) == ("in one two 2\n", 4, "error"), told


@pytest.mark.asyncio(loop_scope="module")
async def test_what_does_not_compile_is_an_error(sandbox: Sandbox) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("no gcc")
    told = await sandbox.execute(Execution(code="int main( {", language="c"))
    assert told.status == "error"
    assert "main.c:1" in told.stderr


LEFT = {
    "shared memory": (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nprint(libc.shmget(77, 4096, 0o1600) >= 0)",
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nprint(libc.shmget(77, 0, 0) < 0)",
    ),
    "semaphores": (
        "import ctypes\nlibc = ctypes.CDLL(None)\nprint(libc.semget(77, 1, 0o1600) >= 0)",
        "import ctypes\nlibc = ctypes.CDLL(None)\nprint(libc.semget(77, 0, 0) < 0)",
    ),
    "/dev/shm": (
        "open('/dev/shm/x', 'w').write('x'); print(True)",
        "import os; print(os.listdir('/dev/shm') == [])",
    ),
    "abstract socket": (
        "import os, socket, time\nif os.fork() == 0:\n    os.setsid(); s = socket.socket(1); s.bind('\\0left'); s.listen(); time.sleep(60)\nprint(True)",
        "import socket\ntry: socket.socket(1).connect('\\0left')\nexcept ConnectionRefusedError: print(True)",
    ),
}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("what", LEFT)
async def test_a_program_leaves_nothing(sandbox: Sandbox, what: str) -> None:
    for code in LEFT[what]:
        told = await sandbox.execute(Execution(code=code))
        assert told.stdout == "True\n", told


@pytest.mark.asyncio(loop_scope="module")
async def test_files_in_memory_count_as_memory(sandbox: Sandbox) -> None:
    fill = "for place in ('/tmp/x', '/work/x', '/dev/shm/x'):\n    with open(place, 'wb') as file:\n        for _ in range(31): file.write(bytes(1 << 20))\nx = bytearray(150 << 20)"
    told = await sandbox.execute(Execution(code=fill, memory=100))
    assert told.status == "memory", told
    assert (await sandbox.execute(Execution(code="print(1)"))).stdout == "1\n"


@pytest.mark.asyncio(loop_scope="module")
async def test_links_among_results_lead_nowhere(sandbox: Sandbox) -> None:
    code = """
import os, threading
open('a.txt', 'w').write('mine')
os.symlink('/etc/passwd', 'b.txt')
os.link('a.txt', 'c.txt')
os.mkfifo('d.txt')
os.mkdir('e'); os.symlink('/usr', 'e/f')
def swap():
    while True:
        os.symlink('/etc/passwd', 'new'); os.replace('new', 'g.txt')
        open('new', 'w').close(); os.replace('new', 'g.txt')
threading.Thread(target=swap, daemon=True).start()
__import__('time').sleep(0.3)
os._exit(0)
"""
    told = await sandbox.execute(Execution(code=code, outputs=["*"]))
    assert {name: text for name, text in told.files.items() if name not in {"g.txt", "new"}} == {
        "a.txt": "mine", "c.txt": "mine",
    }  # fmt: skip
    assert "root:" not in str(told.files)
    assert {"b.txt", "d.txt"} <= set(told.files_left_out)
    assert not any(name.startswith("e/f/") for name in told.files)
