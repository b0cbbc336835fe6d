"""Lines of the data set that can't be read: rows with an error that says where, or nothing starts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tests.faults.runs import KEYS, TRIALS, Run, line
from tests.faults.server import Server

BAD = {3: '{"messages": [{"role": "user"', 17: "[1, 2]", 59: "\x00"}


def _broken(folder: Path, server: Server, *settings: str) -> Run:
    run = Run(folder, [server.url], *settings)
    lines = run.data.read_text().splitlines(keepends=True)
    for index, text in BAD.items():
        lines[index] = text + "\n"
    run.data.write_text("".join(lines))
    return run


def test_a_line_that_cannot_be_read_is_an_error_row(tmp_path: Path) -> None:
    bad = {(index, trial): "data" for index in BAD for trial in range(TRIALS)}
    with Server.in_thread() as server:
        run = _broken(tmp_path, server)
        assert run.to_end() == 0, run.said
        found = run.check(errors=bad)
        for row in found:
            if (row["index"], row["trial"]) in bad:
                assert f"{run.data}:{row['index'] + 1}: " in row["error"]["message"]
        assert Counter(server.asked) == dict.fromkeys([key for key in KEYS if key not in bad], 1)
        again = len(server.asked)
        assert run.to_end() == 0, run.said
        run.check(errors=bad)
        assert len(server.asked) == again, "an error counts as finished"


def test_a_run_that_should_stop_there_asks_for_nothing(tmp_path: Path) -> None:
    with Server.in_thread() as server:
        run = _broken(tmp_path, server, "dataset.on_bad_row=stop")
        assert run.to_end() == 1
        assert f"{run.data}:4: not JSON" in run.said
        assert "dataset.on_bad_row" in run.said
        assert "Traceback" not in run.said
        assert server.asked == []
        assert not run.done()
        run.data.write_text("".join(map(line, range(len(KEYS) // TRIALS))))
        assert run.to_end() == 0, run.said
        run.check()
