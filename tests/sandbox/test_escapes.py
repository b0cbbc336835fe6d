"""Programs that try to get out of the sandbox, or at what isn't theirs: each is contained, told of, and the next one runs."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from matrix.sandbox.execution import Executed, Execution
from matrix.sandbox.pool import Sandbox
from matrix.spec.services import SandboxEngine

pytestmark = [pytest.mark.asyncio(loop_scope="module")]
CANARY = "canary-" + os.urandom(8).hex()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox() -> AsyncIterator[Sandbox]:
    os.environ["CANARY"] = CANARY
    engine = SandboxEngine(
        kind="sandbox", workers=1, timeout_s=5, memory_mb=128, disk_mb=16, output_kb=64, processes=32
    )
    box = Sandbox(engine)
    await box.start()
    yield box
    await box.close()
    del os.environ["CANARY"]


async def attack(sandbox: Sandbox, code: str, **fields: object) -> Executed:
    executed = await sandbox.execute(Execution.model_validate({"code": code, **fields}))
    after = await sandbox.execute(Execution(code="import os; print(1 + 1, os.listdir('/work'), os.listdir('/tmp'))"))
    assert (after.status, after.stdout) == ("ok", "2 ['main.py'] []\n")
    return executed


REFUSED = {
    "tcp": "import socket; socket.create_connection(('1.1.1.1', 53), 2)",
    "udp": "import socket; socket.socket(2, 2).sendto(b'x', ('1.1.1.1', 53))",
    "dns": "import socket; socket.getaddrinfo('example.com', 80)",
    "netlink": "import socket; socket.socket(16, 3, 0)",
    "vsock": "import socket; socket.socket(40, 1, 0)",
    "packet": "import socket; socket.socket(17, 3, 0)",
    "raw": "import socket; socket.socket(2, 3, 1)",
    "home": "import os; os.listdir('/home')",
    "write to the system": "open('/usr/x', 'w')",
    "write to the root": "open('/x', 'w')",
    "write to /dev": "open('/dev/x', 'w')",
    "write to the harness": "open('/matrix/inside/zygote.py', 'a')",
    "memory of the supervisor": "open('/proc/1/mem', 'rb')",
    "environment of the supervisor": "open('/proc/1/environ', 'rb').read(1)",
    "descriptors of the supervisor": "import os; os.listdir('/proc/1/fd')",
    "folder of the supervisor": "import os; os.listdir('/proc/1/root')",
    "limits of the supervisor": "import resource; resource.prlimit(1, resource.RLIMIT_NOFILE, (0, 0))",
    "importance of the supervisor": "import os; os.setpriority(os.PRIO_PROCESS, 1, 19)",
    "importance of all": "import os; os.setpriority(os.PRIO_USER, 0, 19)",
    "processors of the supervisor": "import os; os.sched_setaffinity(1, {0})",
    "device": "import os, stat; os.mknod('x', stat.S_IFBLK | 0o666, os.makedev(8, 0))",
    "other user": "import os; os.setuid(0)",
}
CALLS = {
    "ptrace": "101, 16, 1, 0, 0",
    "mount": "165, b'tmpfs', b'/work', b'tmpfs', 0, 0",
    "unshare": "272, 0x10000000",
    "clone into a user namespace": "56, 0x10000011, 0, 0, 0, 0",
    "clone3": "435, 0, 0",
    "setns": "308, 0, 0",
    "io_uring": "425, 1, 0",
    "bpf": "321, 0, 0, 0",
    "keyctl": "250, 0, -3, 1",
    "add_key": "248, b'user', b'x', b'x', 1, -3",
    "process_vm_readv": "310, 1, 0, 0, 0, 0, 0",
    "perf_event_open": "298, 0, 0, -1, -1, 0",
    "userfaultfd": "323, 0",
    "open_by_handle_at": "304, -100, 0, 0",
    "chroot": "161, b'/work'",
    "io_uring by another ABI": "0x40000000 | 425, 1, 0",
}


@pytest.mark.parametrize("name", REFUSED)
async def test_it_is_refused(sandbox: Sandbox, name: str) -> None:
    executed = await attack(sandbox, REFUSED[name])
    assert executed.status == "error"
    assert executed.exception is not None
    assert executed.exception.split(":")[0] in {
        *("OSError", "PermissionError", "FileNotFoundError", "socket.gaierror", "TimeoutError")
    }


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of system calls are those of x86-64")
@pytest.mark.parametrize("name", CALLS)
async def test_the_kernel_refuses_it(sandbox: Sandbox, name: str) -> None:
    code = f"import ctypes; c = ctypes.CDLL(None, use_errno=True); print(c.syscall({CALLS[name]}), ctypes.get_errno())"
    executed = await attack(sandbox, code)
    if "ABI" in name:
        assert (executed.status, executed.signal) == ("killed", "SIGSYS")
    else:
        assert executed.stdout in {"-1 1\n", "-1 38\n"}


ENDED = {
    "sleep": ("import time; time.sleep(99)", "timeout"),
    "signals ignored": (
        (
            "import signal, time\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n"
            "    except (OSError, ValueError): pass\ntime.sleep(99)"
        ),
        "timeout",
    ),
    "stopped": ("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", "timeout"),
    "flood of stdout": ("while True: print('x' * 100000)", "output_limit"),
    "flood of stderr": ("import os\nwhile True: os.write(2, b'x' * 100000)", "output_limit"),
    "memory": ("x = []\nwhile True: x.append(bytearray(1 << 20))", "memory"),
    "memory of many": (
        (
            "import os, time\nfor _ in range(10):\n    if os.fork() == 0: x = bytearray(30 << 20); time.sleep(1); os._exit(0)\n"
            "for _ in range(10): os.wait()"
        ),
        "memory",
    ),
    "fork bomb": (
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        "timeout",
    ),
}


@pytest.mark.parametrize("name", ENDED)
async def test_it_is_ended(sandbox: Sandbox, name: str) -> None:
    code, status = ENDED[name]
    executed = await attack(sandbox, code, timeout=1 if status == "timeout" else 5)
    assert executed.status == status
    assert len(executed.stdout) + len(executed.stderr) <= 2 * 64 << 10


async def test_disks_fill_at_their_limit(sandbox: Sandbox) -> None:
    filled = "import os\nfor n in range(99999):\n    {}"
    for step in ("open(f'/tmp/{n}', 'wb').write(bytes(1 << 20))", "open(f'/work/{n}', 'w')"):
        assert "No space left" in str((await attack(sandbox, filled.format(step), timeout=60)).exception)


async def test_descriptors_end_at_their_limit(sandbox: Sandbox) -> None:
    assert "Too many open files" in str(
        (await attack(sandbox, "x = [open('/dev/null') for _ in range(5000)]")).exception
    )


async def test_it_holds_no_descriptors_but_its_own(sandbox: Sandbox) -> None:
    executed = await attack(sandbox, "import os; print(sorted(os.listdir('/proc/self/fd')))")
    assert executed.stdout == "['0', '1', '2', '3']\n"  # the last is that of listdir


async def test_sockets_of_the_host_are_out_of_reach(sandbox: Sandbox, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as abstract, socket.socket(socket.AF_UNIX) as named, socket.socket() as tcp:
        abstract.bind(f"\0{CANARY}")
        named.bind(str(tmp_path / "s"))
        tcp.bind(("127.0.0.1", 0))
        for one in (abstract, named, tcp):
            one.listen()
        targets = f"[(1, '\\0{CANARY}'), (1, {str(tmp_path / 's')!r}), (2, ('127.0.0.1', {tcp.getsockname()[1]}))]"
        code = f"import socket\nfor family, to in {targets}: print(socket.socket(family).connect_ex(to) != 0)"
        assert (await attack(sandbox, code)).stdout == "True\nTrue\nTrue\n"


async def test_files_and_environment_of_the_host_are_out_of_reach(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(CANARY)
    code = (
        f"import os, glob\nprint(os.path.exists({str(tmp_path)!r}), 'CANARY' in os.environ)\n"
        "print(sorted(n for n in os.listdir('/proc') if n.isdigit()))\n"
        "print([n for n in ('/boot', '/var', '/tmp/ray', '/etc/shadow', '/run', '/home') if os.path.exists(n)])"
    )
    assert (await attack(sandbox, code)).stdout == "False False\n['1', '2']\n[]\n"


HAYSTACK = """
needle = bytes(b ^ 1 for b in bytes.fromhex("NEEDLE"))
with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
    found = 0
    for line in maps:
        span, rights = line.split()[:2]
        if rights[0] == "r" and "[v" not in line:
            start, end = (int(x, 16) for x in span.split("-"))
            memory.seek(start)
            try: found += memory.read(end - start).count(needle)
            except OSError: pass
print(found)
"""


async def test_memory_holds_nothing_of_others(sandbox: Sandbox) -> None:
    for _ in range(3):
        one = Execution(code=f"print('{CANARY}')", stdin=CANARY * 9, files={"a": CANARY}, outputs=["*"])
        assert CANARY in (await sandbox.execute(one)).stdout
    hidden = bytes(byte ^ 1 for byte in CANARY.encode()).hex()
    executed = await attack(sandbox, HAYSTACK.replace("NEEDLE", hidden))
    assert executed.stdout == "1\n"  # what it looks for itself


async def test_a_judged_program_sees_nothing_of_its_test(sandbox: Sandbox) -> None:
    code = (
        "import sys, gc\ndef f():\n    frame = sys._getframe()\n    texts = []\n"
        "    while frame:\n        texts.append(repr(frame.f_locals))\n        frame = frame.f_back\n"
        "    texts += [repr(o) for o in gc.get_objects() if isinstance(o, dict)]\n"
        "    return any('hidden' + '-answer' in text for text in texts)"
    )
    executed = await attack(sandbox, code, test="# hidden-answer\nassert f() is False")
    assert executed.passed is True, executed.failure


async def test_signals_reach_no_others(sandbox: Sandbox) -> None:
    code = (
        "import os, signal, time\nfor n in range(1, 65):\n    try: os.kill(1, n)\n    except OSError: pass\n"
        "time.sleep(0.2)\nprint('still here')"
    )
    executed = await attack(sandbox, code)
    assert (executed.status, executed.stdout) == ("ok", "still here\n")


async def test_nothing_survives(sandbox: Sandbox) -> None:
    code = (
        "import os, socket, sys, threading, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        s = socket.socket(1); s.bind('\\0left'); s.listen()\n        time.sleep(99)\n    os._exit(0)\n"
        "threading.Thread(target=time.sleep, args=(99,), daemon=True).start()\n"
        "open('/dev/shm/left', 'w'); open('/tmp/left', 'w'); open('left', 'w')\ntime.sleep(0.1)"
    )
    assert (await attack(sandbox, code)).status == "ok"
    look = (
        "import os, socket\nprint(os.listdir('/dev/shm'), [n for n in os.listdir('/proc') if n.isdigit()],"
        " socket.socket(1).connect_ex('\\0left') != 0)"
    )
    assert (await attack(sandbox, look)).stdout == "[] ['1', '2'] True\n"


async def test_result_files_are_files_of_its_folder(sandbox: Sandbox) -> None:
    code = (
        "import os, socket\nos.symlink('/etc/passwd', 'link'); os.symlink('/proc/1/environ', 'env')\n"
        "os.symlink('/usr', 'folder'); socket.socket(1).bind('sock'); open('good', 'w').write('yes')\n"
        "open('sparse', 'w').truncate(16 << 20); open('shut', 'w').write('s'); os.chmod('shut', 0)\n"
        "open(b'odd\\xff', 'w'); open('two\\nlines', 'w')\n"
        "for _ in range(300):\n    os.mkdir('d'); os.chdir('d')\nopen('deep', 'w')"
    )
    executed = await attack(sandbox, code, outputs=["*"])
    assert executed.status == "ok"
    assert executed.files.items() >= {"good": "yes", "shut": "s", "odd\\xff": "", "two\nlines": ""}.items()
    assert {"link", "env", "sock", "..."} <= set(executed.files_left_out)
    assert not any("deep" in name or name.startswith("folder/") for name in executed.files)


async def test_a_large_result_of_bytes_that_grow_in_json(sandbox: Sandbox) -> None:
    executed = await attack(sandbox, "open('x', 'wb').write(bytes(8 << 20))", outputs=["x"])
    assert (executed.status, executed.files) == ("ok", {"x": "\0" * (8 << 20)})


async def test_a_signal_without_a_name(sandbox: Sandbox) -> None:
    executed = await attack(sandbox, "import os; os.kill(os.getpid(), 40)")
    assert (executed.status, executed.signal) == ("killed", "SIGRTMIN+6")
