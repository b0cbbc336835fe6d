"""`matrix show`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from matrix.commands.show import main
from matrix.errors import ConfigError
from tests.checkout import ROOT
from tests.show.conversations import broken, talk, write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", *(broken(index) if index % 50 == 7 else talk(index) for index in range(150)))


def test_the_first_rows_and_what_all_come_to(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run)]) == 0
    out = capsys.readouterr().out
    assert out.count("What is the capital") + out.count("Unanswerable") == 100
    assert "... the first 100 of 150 rows; --limit 0 shows all" in out
    assert "rows         150, 3 of them with an error" in out
    assert main([str(run), "--limit", "0"]) == 0
    assert capsys.readouterr().out.count("q1") >= 61


def test_only_rows_that_ended_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "--termination", "error"]) == 0
    out = capsys.readouterr().out
    assert out.count("Unanswerable") == 3
    assert "What is" not in out
    assert main([str(run), "--termination", "eror"]) == 0
    assert "no row ended with eror (did you mean error?)" in capsys.readouterr().err


def test_one_row(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "--row", "q3"]) == 0
    assert "capital of country 3?" in capsys.readouterr().out
    assert main([str(run), "--row", "q3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["termination"] == "agreement"
    assert main([str(run), "--index", "7"]) == 0
    assert "Traceback" in capsys.readouterr().out


def test_of_several_trials_the_first_and_how_to_see_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", talk(0), talk(0, 1), talk(0, 2))
    assert main([str(run), "--row", "q0"]) == 0
    found = capsys.readouterr()
    assert "q0  trial 0" in found.out
    assert "There are 2 more of this name: --index 0 --trial 1, --index 0 --trial 2" in found.err
    assert main([str(run), "--row", "q0", "--trial", "2"]) == 0
    assert "q0  trial 2" in capsys.readouterr().out


def test_rows_as_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "--json", "--termination", "error"]) == 0
    assert [json.loads(line)["index"] for line in capsys.readouterr().out.splitlines()] == [7, 57, 107]
    assert main([str(run), "--json", "--limit", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_page_of_a_sample_says_so(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert main([str(run), "--html", str(page), "--limit", "20"]) == 0
    assert "20 rows of 150, drawn uniformly (--limit 0 takes all)" in capsys.readouterr().out
    assert page.read_text().count('"opening":') == 20
    assert "a uniform sample of 20 of 150 rows" in page.read_text()
    assert main([str(run), "--html", str(page), "--limit", "0", "--termination", "error"]) == 0
    assert page.read_text().count('"opening":') == 3
    assert "only rows with the termination error" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "RUN"),
        (["run", "--trial", "x"], "invalid int value"),
        (["run", "--trial", "1"], "goes with --row or --index"),
        (["run", "--html", "a", "--row", "1"], "goes with neither"),
        (["run", "--limit", "-1"], "should be 0"),
        (["run", "--termnation", "x"], r"--termnation: no such argument \(did you mean --termination\?\)$"),
        (["run", "other"], "other: no such argument"),
    ],
)
def test_what_is_typed_wrong(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        main(arguments)


def test_a_reader_that_has_seen_enough(run: Path) -> None:
    script = f"import sys; from matrix.commands.show import main; sys.exit(main([{str(run)!r}, '--limit', '0']))"
    done = subprocess.run(
        ["bash", "-c", 'set -o pipefail; "$0" -c "$1" | head -n 1', sys.executable, script],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("id ")
