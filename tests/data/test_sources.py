from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from matrix.data.naming import ENDINGS
from matrix.data.sources import LocalFile, check_dataset, locate
from matrix.errors import DataError
from matrix.spec.workload import DatasetSpec


def check(*paths: Path | str) -> str | None:
    return check_dataset(DatasetSpec(name="x", path=str(paths[0]) if len(paths) == 1 else list(map(str, paths))))


def found(*paths: Path | str) -> list[Path]:
    files = locate(str(paths[0]) if len(paths) == 1 else list(map(str, paths)))
    return [file.path for file in files if isinstance(file, LocalFile)]


@pytest.mark.parametrize("ending", [*ENDINGS, ".JSONL"])
def test_a_file_with_a_known_ending_is_fine(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"rows{ending}"
    file.touch()
    assert check(file) is None
    assert found(file) == [file]


def test_rows_from_the_hub_need_no_file() -> None:
    assert check_dataset(DatasetSpec(name="x", hub="openai/gsm8k")) is None


def test_a_missing_file_has_its_nearest_neighbour(tmp_path: Path) -> None:
    (tmp_path / "gsm8k.jsonl").touch()
    (tmp_path / "notes.txt").touch()
    assert check(tmp_path / "gms8k.jsonl") == "no such file (did you mean gsm8k.jsonl?)"
    assert check(tmp_path / "something-else") == "no such file (one of: gsm8k.jsonl)"
    assert "nor is there a folder" in (check(tmp_path / "deep" / "gsm8k.jsonl") or "")


def test_a_missing_file_in_a_folder_without_rows(tmp_path: Path) -> None:
    assert check(tmp_path / "a.jsonl") == f"no such file (no file with rows in {tmp_path})"


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    assert check(tmp_path) == "a folder, not a file (and no file with rows in it)"
    (tmp_path / "b.csv").touch()
    (tmp_path / "a.jsonl.gz").touch()
    assert check(tmp_path) == "a folder, not a file (files with rows in it: a.jsonl.gz, b.csv)"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rows.josnl", "unknown ending '.josnl' (did you mean .jsonl?)"),
        ("rows.parquet.gz", "unknown ending '.parquet.gz' (did you mean .parquet?)"),
        ("rows.xlsx", "unknown ending '.xlsx' (one of: .csv"),
        ("rows", "unknown ending '' (one of: .csv"),
    ],
)
def test_an_unknown_ending_has_the_nearest_one(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).touch()
    assert (check(tmp_path / name) or "").startswith(message)


def test_home_and_relative_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.jsonl").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert check("~/rows.jsonl") is None
    assert check("rows.jsonl") is None


def test_a_file_in_a_package_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = tmp_path / "slow_package" / "samples"
    samples.mkdir(parents=True)
    (samples.parent / "__init__.py").write_text("raise RuntimeError('imported')")
    (samples / "rows.jsonl").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert found("package:slow_package/samples/rows.jsonl") == [samples / "rows.jsonl"]
    assert check("package:slow_package/samples/row.jsonl") == "no such file (did you mean rows.jsonl?)"
    for path in ("package:no_such_package/rows.jsonl", "package:slow_package", "package:", "package:json.tool/a.jsonl"):
        assert "no installed package" in (check(path) or "")


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    for name in ("part-10.jsonl", "part-9.jsonl", "part-1.csv", "other.jsonl.gz", ".part-0.jsonl", "notes.md"):
        (tmp_path / name).touch()
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "part-2.jsonl").touch()
    return tmp_path


def test_a_pattern_is_its_files_in_natural_order(parts: Path) -> None:
    assert found(parts / "part-*") == [parts / "part-1.csv", parts / "part-9.jsonl", parts / "part-10.jsonl"]
    assert found(parts / "part-?.jsonl") == [parts / "part-9.jsonl"]
    assert found(parts / "**" / "*.jsonl") == [
        parts / "deep" / "part-2.jsonl",
        parts / "part-9.jsonl",
        parts / "part-10.jsonl",
    ]
    assert check(parts / "part-*") is None


def test_numbers_in_folders_count_as_numbers_too(tmp_path: Path) -> None:
    files = [tmp_path / f"step{step}" / f"{part}.jsonl" for step in (2, 10) for part in (8, 11)]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.touch()
    assert found(tmp_path / "step*" / "*.jsonl") == files


def test_a_list_keeps_its_order(parts: Path) -> None:
    assert found(parts / "part-9.jsonl", parts / "part-1*") == [
        parts / "part-9.jsonl",
        parts / "part-1.csv",
        parts / "part-10.jsonl",
    ]


def test_a_file_whose_name_looks_like_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "rows[1].jsonl").touch()
    assert found(tmp_path / "rows[1].jsonl") == [tmp_path / "rows[1].jsonl"]


def test_a_pattern_that_nothing_fits_says_what_there_is(parts: Path) -> None:
    inside = "other.jsonl.gz, part-1.csv, part-9.jsonl, part-10.jsonl"
    assert (
        check(parts / "trian-*.jsonl") == f"no file fits this pattern (files with rows in it: .part-0.jsonl, {inside})"
    )
    assert check(parts / "no" / "such" / "*.jsonl") == f"no file fits this pattern (there is no folder {parts}/no/such)"


def test_a_pattern_must_not_take_other_files_along(parts: Path) -> None:
    assert (check(parts / "*") or "").startswith(f"fits {parts}/notes.md: unknown ending '.md'")


def test_a_problem_in_a_list_names_its_file(parts: Path) -> None:
    path = parts / "part-8.jsonl"
    assert check(parts / "part-9.jsonl", path) == f"{path}: no such file (did you mean part-9.jsonl?)"


def test_no_file_is_read_twice(parts: Path) -> None:
    message = f"{parts}/part-9.jsonl is there twice (list it once, or give patterns that don't overlap)"
    assert check(parts / "part-9.jsonl", parts / "*.jsonl") == message


@pytest.mark.parametrize("path", [5, [], ["a.jsonl", 5], {"a": 1}])
def test_what_is_neither_a_file_nor_a_list_of_files(path: object) -> None:
    with pytest.raises(ValidationError, match="should be a file, a pattern such as"):
        DatasetSpec.model_validate({"name": "x", "path": path})


def test_locate_raises_what_check_says(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        locate(str(tmp_path / "a.jsonl"))


def test_checking_imports_nothing_heavy() -> None:
    code = (
        "import sys, matrix.data.sources as r, matrix.spec.workload as w\n"
        "assert r.check_dataset(w.DatasetSpec(name='x', path='nope.jsonl'))\n"
        "assert r.check_dataset(w.DatasetSpec(name='x', path='memory://bucket/rows.jsonl')) is None\n"
        "print(*{'orjson', 'pyarrow', 'datasets', 'aiohttp', 'numpy', 'fsspec'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_file_under_two_spellings_is_there_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="is there twice"):
        locate(["a.jsonl", f"{tmp_path}/./a.jsonl"])
