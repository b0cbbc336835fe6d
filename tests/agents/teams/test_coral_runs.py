"""Whole runs of coral against a server that plays reasoners and extractor by a script."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.command import against, only_run_dir, rows, run, summary
from tests.fake_engine import Body, FakeEngine, Fault

OPENING = "How would you solve it? You begin."
ORDER = ["teacher", "answer_extractor", "answer_matcher", "student", "answer_extractor", "answer_matcher"]
# By row: the right answer, what teacher and student say in their turns (the last again and again), `-` for nothing.
SCRIPT = {
    "at once": ("C", ["C"], ["C"]),
    "convinced": ("C", ["A"], ["B", "A"]),
    "never": ("B", ["A"], ["B"]),
    "silence keeps": ("C", ["C", "-"], ["-", "C"]),
    "beyond": ("C", ["J"], ["J"]),
    "garbage": ("C", ["?"], ["?"]),
}

OPTIONS = ("dataset=jsonl", "dataset.path=rows.jsonl", "dataset.id_key=question", "agents.limits.turns=18")


def write(folder: Path) -> None:
    """The script's rows."""
    data = [
        {"question": name, "options": ["w", "x", "y", "z"], "answer": answer} for name, (answer, *_) in SCRIPT.items()
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))


def reasoner(body: Body) -> tuple[str, int]:
    """Who is asked, and for which turn."""
    said = body["messages"][1:]
    number = sum(message["role"] == "assistant" for message in said) + 1
    return ("teacher" if said[0]["content"] == OPENING else "student"), number


def play(body: Body) -> str:
    first = body["messages"][0]
    if first["role"] == "system":
        _, teacher, student = next(SCRIPT[row] for row in SCRIPT if f"Problem: {row}\n" in first["content"])
        name, number = reasoner(body)
        turns = teacher if name == "teacher" else student
        return f"{name} turn {number}: {turns[min(number, len(turns)) - 1]}"
    (letter,) = re.findall(r"<message>\n\w+ turn \d+: (.)\n</message>", first["content"])
    return {"-": "It settles on none: UNDECIDED.", "?": "the the of the "}.get(letter, f"({letter})")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], dict[str, Any], list[Body]]:
    """Rows, summary and requests of a run over the script."""
    folder = tmp_path_factory.mktemp("coral")
    write(folder)
    with FakeEngine.in_thread(answer=play) as engine:
        done = run(folder, *against(engine.url), *OPTIONS, "agents=coral")
    assert done.returncode == 0, done.stderr
    run_dir = only_run_dir(folder / "outputs")
    return rows(run_dir), summary(run_dir), engine.requests


def test_rows_end_as_they_should(finished: tuple[list[dict[str, Any]], dict[str, Any], list[Body]]) -> None:
    found = {row["id"]: row for row in finished[0]}
    assert {row["status"] for row in finished[0]} == {"ok"}
    ends = {
        name: (row["termination"], row["metrics"]["total_turns"], row["scores"]["correct"])
        for name, row in found.items()
    }
    assert ends == {
        "at once": ("agreement", 2, {"values": [1.0], "answers": ["C"], "statuses": None}),
        "convinced": ("agreement", 4, {"values": [0.0], "answers": ["A"], "statuses": None}),
        "never": ("max_turns", 6, {"values": [1.0], "answers": ["B"], "statuses": None}),
        "silence keeps": ("agreement", 4, {"values": [1.0], "answers": ["C"], "statuses": None}),
        "beyond": ("max_turns", 6, {"values": [0.0], "answers": [None], "statuses": None}),
        "garbage": ("max_turns", 6, {"values": [0.0], "answers": [None], "statuses": None}),
    }
    # FakeEngine counts words: "teacher turn 1: A" has four.
    assert found["convinced"]["metrics"] == {
        "agreement": 1, "agreement_correctness": 0, "total_turns": 4, "t_len": 4, "s_len": 4, "conv_len": 16,
    }  # fmt: skip
    assert [found[name]["metrics"]["agreement_correctness"] for name in SCRIPT] == [1, 0, 0, 1, 0, 0]


def test_the_history_says_who_held_what(finished: tuple[list[dict[str, Any]], dict[str, Any], list[Body]]) -> None:
    history = next(row["history"] for row in finished[0] if row["id"] == "silence keeps")
    assert [turn["agent"] for turn in history] == ORDER * 2
    assert [turn["text"] for turn in history if turn["agent"] in ("teacher", "student")] == [
        "teacher turn 1: C", "student turn 1: -", "teacher turn 2: -", "student turn 2: C",
    ]  # fmt: skip
    assert [turn["data"] for turn in history if turn["agent"] == "answer_extractor"] == [
        {"speaker": "teacher", "answer": "C", "right": 1.0},
        {"speaker": "student", "answer": None, "right": 0.0},
        {"speaker": "teacher", "answer": None, "right": 0.0},
        {"speaker": "student", "answer": "C", "right": 1.0},
    ]
    assert [turn["text"] for turn in history if turn["agent"] == "answer_matcher"] == [
        "teacher: C, student: undecided",
        "teacher: C, student: undecided",
        "teacher: C, student: undecided",
        "teacher: C, student: C",
    ]
    assert history[-1]["data"] == {"held": {"teacher": "C", "student": "C"}, "agreement": True}


def test_reasoners_are_sent_the_conversation_from_their_side(
    finished: tuple[list[dict[str, Any]], dict[str, Any], list[Body]],
) -> None:
    asked = [
        body["messages"]
        for body in finished[2]
        if len(body["messages"]) > 1 and "Problem: convinced\n" in body["messages"][0]["content"]
    ]
    said = [[(message["role"], message["content"]) for message in messages[1:]] for messages in asked]
    assert sorted(said, key=len) == [
        [("user", OPENING)],
        [("user", "teacher turn 1: A")],
        [("user", OPENING), ("assistant", "teacher turn 1: A"), ("user", "student turn 1: B")],
        [("user", "teacher turn 1: A"), ("assistant", "student turn 1: B"), ("user", "teacher turn 2: A")],
    ]
    assert all("D) z" in messages[0]["content"] for messages in asked)


def test_the_summary_counts_ends_and_has_the_figures_of_the_paper(
    finished: tuple[list[dict[str, Any]], dict[str, Any], list[Body]],
) -> None:
    found = finished[1]
    assert found["terminations"] == {"agreement": 3, "max_turns": 3}
    means = {name: figure["mean"] for name, figure in found["metrics"].items()}
    assert means == {
        "agreement": 0.5, "agreement_correctness": pytest.approx(2 / 6), "total_turns": pytest.approx(28 / 6),
        "t_len": 4, "s_len": 4, "conv_len": pytest.approx(4 * 28 / 6),
    }  # fmt: skip
    assert found["scores"]["correct"]["accuracy"] == pytest.approx(3 / 6)


def test_old_turns_are_left_out_where_the_context_is_small(tmp_path: Path) -> None:
    options = ("agents=coral", "dataset.limit=1", "agents.limits.turns=18", "agents.roles.teacher.options.remember=8")
    with FakeEngine.in_thread(answer=lambda body: "one two three four") as engine:
        done = run(tmp_path, *against(engine.url), *options)
    assert done.returncode == 0, done.stderr
    talks = [body["messages"] for body in engine.requests if body["messages"][0]["role"] == "system"]
    # Two turns fit. The one that it has said itself comes second, or after an opening.
    assert [len(messages) for messages in talks] == [2, 2, 4, 4, 4, 4]
    assert {messages[1]["role"] for messages in talks} == {"user"}


def test_math_answers_agree_by_value(tmp_path: Path) -> None:
    def mathematicians(body: Body) -> str:
        first = body["messages"][0]["content"]
        if body["messages"][0]["role"] == "system":
            return r"I get \boxed{\frac{3}{8}}" if reasoner(body)[0] == "teacher" else r"\boxed{0.375} it is"
        return first.partition("<message>\n")[2].partition("\n</message>")[0]

    options = ("recipes=coral_math500", "model=smollm2", "dataset=math_sample", "dataset.limit=4")
    with FakeEngine.in_thread(answer=mathematicians) as engine:
        done = run(tmp_path, *against(engine.url), *options)
    assert done.returncode == 0, done.stderr
    found = rows(only_run_dir(tmp_path / "outputs"))
    assert [row["termination"] for row in found] == ["agreement"] * 4
    assert [row["scores"]["correct"]["answers"] for row in found] == [["3/8"]] * 4
    assert [row["metrics"]["agreement_correctness"] for row in found] == [0, 0, 0, 1]


def test_a_request_that_fails_for_good_is_an_error_row(tmp_path: Path) -> None:
    with FakeEngine.in_thread(fail=lambda body: Fault.http(400, "too long")) as engine:
        done = run(tmp_path, *against(engine.url), "agents=coral", "dataset.limit=2")
    assert done.returncode == 1, done.stderr
    found = rows(only_run_dir(tmp_path / "outputs"))
    assert [(row["status"], row["termination"], row["error"]["type"]) for row in found] == [
        ("error", "error", "http_400")
    ] * 2


def test_the_same_as_a_graph(finished: tuple[list[dict[str, Any]], dict[str, Any], list[Body]], tmp_path: Path) -> None:
    pytest.importorskip("langgraph")
    write(tmp_path)
    with FakeEngine.in_thread(answer=play) as engine:
        done = run(tmp_path, *against(engine.url), *OPTIONS, "agents=coral_langgraph")
    assert done.returncode == 0, done.stderr
    found = rows(only_run_dir(tmp_path / "outputs"))
    for row, ordered in zip(found, finished[0], strict=True):
        same = ("id", "termination", "metrics", "scores")
        assert [row[name] for name in same] == [ordered[name] for name in same]
        turns = [[(turn["agent"], turn["text"], turn["data"]) for turn in one["history"]] for one in (row, ordered)]
        assert turns[0] == turns[1]
