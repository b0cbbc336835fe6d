"""What answers at once imports nothing heavy, and takes little longer than Hydra itself."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import ROOT, environment

HEAVY = (
    "ray",
    "torch",
    "vllm",
    "transformers",
    "wandb",
    "datasets",
    "sympy",
    "aiohttp",
    "openai",
    "rich",
    "grpc",
    "google.protobuf",
)
SPY = """
import atexit, runpy, sys
atexit.register(lambda: print("IMPORTED", *sorted(sys.modules), file=sys.stderr))
sys.argv = [{program!r}, *{arguments!r}]
runpy.run_path({program!r}, run_name="__main__")
"""
EMPTY = """
import hydra
@hydra.main(version_base="1.3", config_path=None)
def main(cfg): pass
main()
"""
COMMANDS = (["--help"], ["--cfg", "job"], ["sampling.temperature=hot", "dataset.path=nope.jsonl"], ["model=lama8b"])


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_nothing_heavy_is_imported(arguments: list[str], tmp_path: Path) -> None:
    script = SPY.format(program=str(ROOT / "run.py"), arguments=arguments)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    imported = set(done.stderr.rpartition("IMPORTED")[2].split())
    assert "hydra" in imported, done.stderr
    assert imported.isdisjoint(HEAVY), imported & set(HEAVY)


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_it_takes_little_longer_than_an_empty_hydra_app(arguments: list[str], tmp_path: Path) -> None:
    empty = tmp_path / "empty.py"
    empty.write_text(EMPTY)

    def once(program: Path, *more: str) -> float:
        """CPU seconds, which are its time on an idle machine: it does one thing after another and waits for nothing."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, str(program), *more], cwd=tmp_path, env=environment(), capture_output=True, check=False
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # Side by side, so that what else the machine does weighs on both; the least disturbed of several counts.
    pairs = [(once(ROOT / "run.py", *arguments), once(empty)) for _ in range(7)]
    ours, theirs = min(pair[0] for pair in pairs), min(pair[1] for pair in pairs)
    assert ours < 1.5 * theirs, f"{ours:.2f} s against {theirs:.2f} s"


@pytest.mark.parametrize(
    ("code", "others"),
    [
        ("import matrix", ("hydra", "pydantic", "yaml")),
        ("from matrix import Cli; Cli()", ("hydra",)),
        ("from matrix.client import query_llm", ("hydra",)),
    ],
)
def test_a_program_that_imports_matrix_gets_what_it_uses(code: str, others: tuple[str, ...], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    unwanted = {*HEAVY, *others} - ({"aiohttp"} if "query_llm" in code else set())
    assert not unwanted & set(done.stdout.split())


def test_what_matrix_does_not_have_is_an_attribute_error() -> None:
    with pytest.raises(ImportError, match="Clj"):
        from matrix import Clj  # type: ignore[attr-defined] # noqa: F401
