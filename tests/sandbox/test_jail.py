"""The command that puts a process into the sandbox, and what a host needs for it."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from matrix.errors import AppError
from matrix.sandbox import jail
from matrix.sandbox.pool import Sandbox
from matrix.spec.services import SandboxEngine


def engine(**fields: object) -> SandboxEngine:
    return SandboxEngine.model_validate({"kind": "sandbox", **fields})


def pairs(command: list[str], option: str) -> list[tuple[str, str]]:
    """The two arguments of each use of an option of bubblewrap."""
    after = command[command.index("bwrap") :]
    return [(after[at + 1], after[at + 2]) for at, word in enumerate(after) if word == option]


@pytest.fixture
def user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


@pytest.mark.usefixtures("user")
def test_a_user_s_worker() -> None:
    command = jail.command(engine(), [Path("/sys/fs/cgroup/x/cgroup.procs")])
    assert command[:2] == ["sh", "-c"]
    assert command[command.index("sh", 2) + 1 : command.index("bwrap")] == ["/sys/fs/cgroup/x/cgroup.procs", "--"]
    options = command[command.index("bwrap") :]
    for option in ("--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-net", "--clearenv"):
        assert option in options
    for option in ("--die-with-parent", "--new-session"):
        assert option in options
    targets = [target for _, target in pairs(command, "--ro-bind")]
    assert "/usr" in targets
    assert "/matrix/inside" in targets
    assert not {"/home", "/root", "/var", "/run", "/etc", "/proc", "/sys"} & set(targets)
    assert "--bind" not in options
    assert "--dev-bind" not in options
    # Nothing of what is in memory may outlive a program.
    assert options[options.index("--remount-ro") + 1] == "/dev"
    assert options[options.index("/dev", options.index("--remount-ro")) + 1 :][:2] == ["--remount-ro", "/"]
    assert {name for name, _ in pairs(command, "--setenv")} == {
        "PATH", "HOME", "TMPDIR", "LANG", "USER", "OMP_NUM_THREADS",
    }  # fmt: skip


def test_root_is_nobody_before_bubblewrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    command = jail.command(engine(), [])
    before = command[: command.index("bwrap")]
    assert before[before.index("unshare") : before.index("unshare") + 2] == ["unshare", "--mount"]
    assert {"--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"} <= set(before)
    # From where nobody can read them, whatever the rights of the folders above.
    assert all(source.startswith("/mnt/") for source, _ in pairs(command, "--ro-bind"))


@pytest.mark.usefixtures("user")
def test_the_network_brings_what_names_need() -> None:
    command = jail.command(engine(network=True), [])
    assert "--unshare-net" not in command
    targets = {target for _, target in pairs(command, "--ro-bind")}
    assert {place for place in ("/etc/resolv.conf", "/etc/hosts") if Path(place).exists()} <= targets
    assert not {"/etc/resolv.conf", "/etc/hosts"} & {
        target for _, target in pairs(jail.command(engine(), []), "--ro-bind")
    }


@pytest.mark.usefixtures("user")
def test_a_root_of_its_own(tmp_path: Path) -> None:
    for name in ("usr/bin", "opt", "home", "root", "tmp", "proc"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "usr/bin/python3").touch()
    (tmp_path / "bin").symlink_to("usr/bin")
    command = jail.command(engine(root=str(tmp_path)), [])
    binds = {target: source for source, target in pairs(command, "--ro-bind")}
    assert binds["/usr"] == str(tmp_path / "usr")
    assert binds["/opt"] == str(tmp_path / "opt")
    assert not {"/home", "/root", "/tmp", "/proc"} & set(binds)
    assert ("usr/bin", "/bin") in pairs(command, "--symlink")
    assert "/usr/bin/python3" in command


@pytest.mark.usefixtures("user")
@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"root": "/no/such/folder"}, "engine.root=/no/such/folder is no folder"),
        ({"root": "/"}, "engine.root=/ holds the files of this machine"),
        ({"python": "/no/such/python"}, "engine.python=/no/such/python isn't there"),
    ],
)
def test_what_can_not_be_shown(fields: dict[str, str], word: str) -> None:
    with pytest.raises(AppError, match=word):
        jail.command(engine(**fields), [])


@pytest.mark.usefixtures("user")
def test_an_interpreter_in_a_home_would_show_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python3").symlink_to(sys.executable)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    with pytest.raises(AppError, match="somebody's files"):
        jail.command(engine(python=str(tmp_path / "bin/python3")), [])


@pytest.mark.usefixtures("user")
def test_a_virtual_environment_comes_with_what_it_is_made_from(tmp_path: Path) -> None:
    (tmp_path / "venv/bin").mkdir(parents=True)
    (tmp_path / "venv/bin/python").symlink_to(Path(sys.base_prefix, "bin/python3"))
    command = jail.command(engine(python=str(tmp_path / "venv/bin/python")), [])
    targets = {target for _, target in pairs(command, "--ro-bind")}
    assert str(tmp_path / "venv") in targets
    base = Path(sys.base_prefix, "bin/python3").resolve().parent.parent
    assert str(base) in targets or base.is_relative_to("/usr")
    assert str(tmp_path / "venv/bin/python") in command


async def test_a_host_without_bubblewrap_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("setpriv", "unshare", "mount", "sh"):
        found = shutil.which(name)
        if found is not None:
            (tmp_path / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AppError, match=r"lacks bwrap \(package bubblewrap\)\. Nothing was run"):
        await Sandbox(engine()).start()


async def test_a_host_without_a_filter_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from matrix.sandbox.filter import compiled

    compiled.cache_clear()
    monkeypatch.setitem(sys.modules, "pyseccomp", None)
    with pytest.raises(AppError, match=r"pyseccomp with libseccomp"):
        await Sandbox(engine()).start()
    compiled.cache_clear()
