from __future__ import annotations

import time
from pathlib import Path

import pytest

from matrix.data.rows import Row
from matrix.errors import DataError
from matrix.show.find import find_rows, find_run
from tests.show.conversations import broken, plain, talk, write_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run-1", talk(0), talk(1), talk(1, 1), talk(2, name="q1"), broken(12), plain(3))


def test_a_run_says_what_it_was(folder: Path) -> None:
    (folder / "state.json").write_text(f'{{"status": "running", "heartbeat": {time.time()}}}')
    run = find_run(folder)
    assert (run.name, run.status) == ("coral-smollm2 / run-1", "running")
    assert run.config["team"] == "coral"
    assert run.config["data set"] == "mmlu"
    assert run.config["temperature"] == "0.7"
    assert "rows" not in run.config


def test_rows_without_a_spec_are_a_run_too(folder: Path) -> None:
    (folder / "spec.yaml").unlink()
    run = find_run(folder)
    assert (run.name, run.config, len(list(run.rows()))) == ("run-1", {}, 6)


@pytest.mark.parametrize(
    ("name", "index", "trial", "keys"),
    [
        ("q0", None, None, [(0, 0)]),
        ("q1", None, None, [(1, 0), (1, 1), (2, 0)]),
        ("q1", None, 1, [(1, 1)]),
        ("q1", 2, None, [(2, 0)]),
        (None, 12, None, [(12, 0)]),
    ],
)
def test_rows_by_name_place_and_trial(
    folder: Path, name: str | None, index: int | None, trial: int | None, keys: list[tuple[int, int]]
) -> None:
    assert [row.key for row in find_rows(find_run(folder), name, index, trial)] == keys


def test_of_two_rows_of_a_key_the_one_with_an_answer_counts(tmp_path: Path) -> None:
    rows: list[Row] = [broken(0), broken(5), talk(0), talk(5), broken(0)]
    run = find_run(write_run(tmp_path / "a", *rows))
    assert [row.status for row in find_rows(run, "q0", None, None)] == ["ok"]
    assert [row.status for row in run.rows()] == ["ok", "ok"]


def test_while_a_line_is_being_written_it_is_not_there(folder: Path) -> None:
    with (folder / "rows" / "part-peer-0.jsonl").open("ab") as part:
        part.write(b'{"id":"q77","index":77,"trial":0,"status":"ok","request":{"x":')
    run = find_run(folder)
    with pytest.raises(DataError, match="no row with --row q77"):
        find_rows(run, "q77", None, None)
    assert len(list(run.rows())) == 6


def test_a_name_is_found_as_it_is_typed_whatever_it_holds(tmp_path: Path) -> None:
    odd = 'a"\\b\n ü\U0001f600'
    run = find_run(write_run(tmp_path / "a", talk(0, name=odd)))
    assert find_rows(run, odd, None, None)[0].id == odd


@pytest.mark.parametrize(
    ("name", "index", "trial", "message"),
    [
        ("Q12", None, None, r"no row with --row Q12; the nearest: q12"),
        ("zebra", None, None, r"no row with --row zebra; matrix show \S+run-1 lists them"),
        ("q1", None, 7, r"no row with --row q1 --trial 7; there are others of that name"),
        (None, 99, None, r"no row with --index 99$"),
    ],
)
def test_an_unknown_row_is_answered_with_the_nearest(
    folder: Path, name: str | None, index: int | None, trial: int | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        find_rows(find_run(folder), name, index, trial)


def test_what_is_no_run_is_said(folder: Path) -> None:
    with pytest.raises(DataError, match=r"no such run dir; did you mean .*run-1\?"):
        find_run(folder.parent / "run1")
    with pytest.raises(DataError, match="is a file; give the run dir"):
        find_run(folder / "spec.yaml")
    with pytest.raises(DataError, match=r"is no run dir, but 1 are below it; the last: .*run-1"):
        find_run(folder.parent)
    with pytest.raises(DataError, match=r"has neither spec\.yaml nor rows"):
        find_run(folder / "rows")
    new = folder.parent / "new"
    new.mkdir()
    (new / "spec.yaml").write_text("name: x\n")
    with pytest.raises(DataError, match="the run has no rows yet"):
        find_run(new)


def test_a_relative_path_has_the_folder_s_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert find_run(Path()).path.samefile(folder)
    assert find_run(Path()).name == "coral-smollm2 / run-1"


def test_a_run_that_was_killed_could_not_say_so(folder: Path) -> None:
    (folder / "state.json").write_text('{"status": "running", "heartbeat": 1000}')
    assert "no sign of life" in find_run(folder).status
