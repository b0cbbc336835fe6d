"""The journal of steps: what is there after whatever end, and what goes when."""

from __future__ import annotations

import signal
from collections.abc import Container
from contextlib import suppress
from pathlib import Path

import pytest

from matrix.agents import steps
from matrix.agents.steps import Step, StepIndex, StepJournal, decode_steps, remove_steps
from matrix.data.rows import Response, RowKey
from matrix.errors import DataError
from tests.agents.small_teams import in_process
from tests.small_disk import resize, small_disk

A, B, C = RowKey(0, 0), RowKey(1, 0), RowKey(1, 1)


def step(at: str, result: object = "x") -> Step:
    return Step(at, "llm", f"digest {at}", result)


def read(folder: Path, wanted: Container[RowKey] = (A, B, C), writer: str = "*") -> StepIndex:
    index = StepIndex(folder)
    index.read(lambda key: key in wanted, writer)
    return index


def found(folder: Path, key: RowKey) -> list[Step]:
    return list(decode_steps(read(folder).of(key)).values())


def segments(folder: Path) -> list[str]:
    return sorted(path.name.partition(".")[2] for path in folder.glob("part-*"))


def test_steps_are_read_back_by_row(tmp_path: Path) -> None:
    response = Response(["ü"], ["stop"], {"prompt_tokens": 1}, None, None, None, 0.5, "http://x/v1", 2)
    journal = StepJournal(tmp_path / "steps", "driver")
    journal.append(A, step("0.1", response))
    journal.append(B, step("0.1", {"b": [1, None]}))
    journal.append(A, step("0-1.1", "two\nlines"))
    journal.append(C, step("0.1", "trial 1"))
    # Without a close: it may be killed at any time.
    assert [one.at for one in found(tmp_path / "steps", A)] == ["0.1", "0-1.1"]
    first, second = found(tmp_path / "steps", A)
    assert Response(**first.result) == response
    assert second == step("0-1.1", "two\nlines")
    assert found(tmp_path / "steps", B) == [step("0.1", {"b": [1, None]})]
    assert found(tmp_path / "steps", C) == [step("0.1", "trial 1")]
    journal.close()
    journal.close()


def test_only_rows_that_are_wanted(tmp_path: Path) -> None:
    journal = StepJournal(tmp_path, "driver")
    for key in (A, B):
        journal.append(key, step("0.1"))
    index = read(tmp_path, wanted={B})
    assert (index.of(A), len(index.of(B))) == ([], 1)
    index.finished(B)
    assert index.of(B) == []


def test_a_later_step_at_the_same_place_counts(tmp_path: Path) -> None:
    journal = StepJournal(tmp_path, "driver")
    journal.append(A, step("0.1", "first"))
    journal.append(A, step("0.1", "second"))
    assert found(tmp_path, A) == [step("0.1", "second")]


def test_no_folder_is_made_until_there_is_a_step(tmp_path: Path) -> None:
    StepJournal(tmp_path / "steps", "driver").close()
    assert not (tmp_path / "steps").exists()
    assert read(tmp_path / "steps").of(A) == []


def test_each_life_of_a_peer_has_files_of_its_own(tmp_path: Path) -> None:
    for number, writer in enumerate(["driver-0", "driver-0", "driver-1", "driver-10"]):
        StepJournal(tmp_path, writer).append(A, step(f"{number}.1"))
    assert len(segments(tmp_path)) == 4
    assert sorted(one.at for one in found(tmp_path, A)) == ["0.1", "1.1", "2.1", "3.1"]
    index = read(tmp_path, writer="driver-1")
    assert list(decode_steps(index.of(A))) == ["2.1"], "driver-10 is somebody else"


def test_a_file_that_was_read_is_not_read_again(tmp_path: Path) -> None:
    StepJournal(tmp_path, "driver-0").append(A, step("0.1"))
    index = read(tmp_path)
    StepJournal(tmp_path, "driver-0").append(A, step("1.1"))
    index.read(lambda _: True, "driver-0")
    assert list(decode_steps(index.of(A))) == ["0.1", "1.1"]
    assert len(index.of(A)) == 2


@pytest.mark.parametrize("kept", [1, 20, -1])
def test_a_torn_last_line_is_a_call_that_was_not_made(tmp_path: Path, kept: int) -> None:
    journal = StepJournal(tmp_path, "driver")
    journal.append(A, step("0.1"))
    journal.append(A, step("0.2", "a long result"))
    (part,) = tmp_path.glob("part-*")
    whole = part.read_bytes()
    first = whole.index(b"\n") + 1
    part.write_bytes(whole[:first] + whole[first:][:kept])
    assert found(tmp_path, A) == [step("0.1")]


def test_segments_go_when_all_their_rows_are_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "_SEGMENT_BYTES", 100)
    journal = StepJournal(tmp_path, "driver")
    journal.append(A, step("0.1", "x" * 100))  # 0
    journal.append(B, step("0.1", "x" * 10))  # 1
    journal.append(A, step("0.2", "x" * 100))  # 1 still
    journal.append(C, step("0.1", "x" * 100))  # 2
    assert [name[-11:-6] for name in segments(tmp_path)] == ["00000", "00001", "00002"]
    journal.finished(A)
    assert [name[-11:-6] for name in segments(tmp_path)] == ["00001", "00002"]
    journal.finished(C)
    assert [name[-11:-6] for name in segments(tmp_path)] == ["00001", "00002"], "the one that is written stays"
    journal.finished(B)
    assert [name[-11:-6] for name in segments(tmp_path)] == ["00002"]
    journal.append(A, step("0.1", "x" * 100))  # 3
    assert [name[-11:-6] for name in segments(tmp_path)] == ["00003"]
    journal.finished(A)
    journal.finished(A)
    journal.finished(RowKey(9, 9))
    remove_steps(tmp_path)
    assert not tmp_path.exists()
    remove_steps(tmp_path)


def test_the_disk_stays_small_however_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "_SEGMENT_BYTES", 10_000)
    journal = StepJournal(tmp_path, "driver")
    most = 0
    for index in range(2_000):
        journal.append(RowKey(index, 0), step("0.1", "x" * 100))
        if index >= 50:
            journal.finished(RowKey(index - 50, 0))
        most = max(most, sum(path.stat().st_size for path in tmp_path.iterdir()))
    assert most < 4 * 10_000
    assert len(journal._rows) == 50


def test_what_json_cannot_hold_leaves_nothing_behind(tmp_path: Path) -> None:
    journal = StepJournal(tmp_path, "driver")
    with pytest.raises(DataError, match="the result of llm can't be written as JSON"):
        journal.append(A, step("0.1", {1: 2}))
    journal.append(A, step("0.2"))
    assert found(tmp_path, A) == [step("0.2")]


def test_a_full_disk_is_told_and_leaves_no_half_a_line(tmp_path: Path) -> None:
    with small_disk(tmp_path, "64k") as disk:
        journal = StepJournal(disk / "steps", "driver")
        journal.append(A, step("0.1"))
        number = 2
        with suppress(DataError):
            while number < 100:
                journal.append(A, step(f"0.{number}", "x" * 5000))
                number += 1
        assert number < 20
        with pytest.raises(DataError, match="part-driver"):
            journal.append(A, step("1.1", "x" * 5000))
        (part,) = (disk / "steps").iterdir()
        assert part.read_bytes().endswith(b"}\n")
        assert len(found(disk / "steps", A)) == number - 1
        resize(disk, "128k")
        journal.append(A, step("1.1", "x" * 5000))
        assert len(found(disk / "steps", A)) == number
        journal.close()


def test_a_kill_takes_no_step_away(tmp_path: Path) -> None:
    done = in_process(
        """
        import os, signal, sys
        from pathlib import Path
        from matrix.agents.steps import Step, StepJournal
        from matrix.data.rows import RowKey

        journal = StepJournal(Path(sys.argv[1]), "driver")
        for number in range(100):
            journal.append(RowKey(0, 0), Step(f"{number}.1", "llm", "d", number))
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        str(tmp_path),
    )
    assert done.returncode == -signal.SIGKILL
    assert [one.result for one in found(tmp_path, A)] == list(range(100))
