from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from matrix.data.sources import ENDINGS, check_dataset, locate
from matrix.errors import DataError
from matrix.spec.workload import DatasetSpec


def check(path: Path | str) -> str | None:
    return check_dataset(DatasetSpec(name="x", path=str(path)))


@pytest.mark.parametrize("ending", [*ENDINGS, ".JSONL"])
def test_a_file_with_a_known_ending_is_fine(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"rows{ending}"
    file.touch()
    assert check(file) is None
    assert locate(str(file)) == file


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
    assert locate("package:slow_package/samples/rows.jsonl") == samples / "rows.jsonl"
    assert check("package:slow_package/samples/row.jsonl") == "no such file (did you mean rows.jsonl?)"
    for path in ("package:no_such_package/rows.jsonl", "package:slow_package", "package:", "package:json.tool/a.jsonl"):
        assert "no installed package" in (check(path) or "")


def test_locate_raises_what_check_says(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        locate(str(tmp_path / "a.jsonl"))


def test_checking_imports_nothing_heavy() -> None:
    code = (
        "import sys, matrix.data.sources as r, matrix.spec.workload as w\n"
        "assert r.check_dataset(w.DatasetSpec(name='x', path='nope.jsonl'))\n"
        "print(*{'orjson', 'pyarrow', 'datasets', 'aiohttp', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
