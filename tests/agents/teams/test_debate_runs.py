"""Whole runs of debate against a server that plays debaters and judge by a script."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.command import against, only_run_dir, rows, run, summary
from tests.fake_engine import Body, FakeEngine

NAMES = ("ada", "emmy", "sofia")
# No digits: the scorer would read them.
ROUNDS = ("first", "second", "third")
# By row: the right answer, then what each says in each round.
SCRIPT = {
    "at once": ("19", [("19", "19", "19")]),
    "convinced": ("6", [("5", "6", "6"), ("6", "6", "6")]),
    "led astray": ("6", [("6", "6", "5"), ("5", "6", "5"), ("5", "5", "5")]),
    "never": ("2", [("1", "2", "3")] * 3),
    "garbage": ("2", [("the of the",) * 3] * 3),
}
# Same model, same prompt: only the seed tells them apart.
SEEDS = {
    random.Random(f"0 {name} {number}").getrandbits(31): (place, number)
    for place, name in enumerate(NAMES)
    for number in (1, 2, 3)
}


def row_of(body: Body) -> str:
    return next(name for name in SCRIPT if name in body["messages"][0]["content"])


def play(body: Body) -> str:
    place, number = SEEDS[body["seed"]]
    answer = SCRIPT[row_of(body)][1][number - 1][place]
    return f"{NAMES[place]} thinks, {ROUNDS[number - 1]} round\n" + (f"#### {answer}" if answer.isdigit() else answer)


def finish(folder: Path, engine: FakeEngine, *options: str) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    data = [{"question": name, "answer": f"so\n#### {answer}"} for name, (answer, _) in SCRIPT.items()]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    rest = ("agents=debate", "dataset=jsonl", "dataset.path=rows.jsonl", "dataset.id_key=question")
    done = run(folder, *against(engine.url), *rest, *options)
    assert done.returncode == 0, done.stderr
    run_dir = only_run_dir(folder / "outputs")
    found = {row["id"]: row for row in rows(run_dir)}
    assert {row["status"] for row in found.values()} == {"ok"}
    return found, summary(run_dir)


def test_the_majority_ends_the_debate(tmp_path: Path) -> None:
    with FakeEngine.in_thread(answer=play, latency_s=0.02) as engine:
        found, counted = finish(tmp_path, engine)
    ends = {
        name: (row["termination"], row["scores"]["correct"]["answers"][0], row["scores"]["correct"]["values"][0])
        for name, row in found.items()
    }
    assert ends == {
        "at once": ("consensus", "19", 1),
        "convinced": ("consensus", "6", 1),
        "led astray": ("consensus", "5", 0),
        "never": ("no_consensus", "1", 0),
        "garbage": ("no_consensus", None, 0),
    }
    assert {name: row["metrics"] for name, row in found.items()} == {
        "at once": {"rounds": 1, "agreement": 1, "first_round_correct": 1},
        "convinced": {"rounds": 2, "agreement": 1, "first_round_correct": 1},
        "led astray": {"rounds": 3, "agreement": 1, "first_round_correct": 1},
        "never": {"rounds": 3, "agreement": pytest.approx(1 / 3), "first_round_correct": 0},
        "garbage": {"rounds": 3, "agreement": 0, "first_round_correct": 0},
    }
    agents = [turn["agent"] for turn in found["convinced"]["history"]]
    assert agents[0::4] == ["judge"] * 3
    assert sorted(agents[1:4]) == sorted(agents[5:8]) == list(NAMES)
    assert counted["terminations"] == {"consensus": 3, "no_consensus": 2}
    assert counted["metrics"]["rounds"]["mean"] == pytest.approx(12 / 5)
    assert counted["scores"]["correct"]["accuracy"] == pytest.approx(2 / 5)
    assert len(engine.requests) == 3 * 12
    assert engine.max_in_flight > 3, "debaters of a round answer at the same time"


def test_debaters_see_the_others_answers_in_one_order(tmp_path: Path) -> None:
    with FakeEngine.in_thread(answer=play) as engine:
        finish(tmp_path, engine)
    seconds = {
        NAMES[SEEDS[body["seed"]][0]]: [message["content"] for message in body["messages"]]
        for body in engine.requests
        if row_of(body) == "convinced" and SEEDS[body["seed"]][1] == 2
    }
    said = {name: f"{name} thinks, first round\n#### {answer}" for name, answer in zip(NAMES, "566", strict=True)}
    for name, (_, own, others) in seconds.items():
        assert own == said[name]
        quoted = "\n\n".join(f"{other}:\n{said[other]}" for other in NAMES if other != name)
        assert others.endswith(f"\n\n{quoted}")


def test_a_model_as_judge(tmp_path: Path) -> None:
    def judged(body: Body) -> str:
        prompt = body["messages"][0]["content"]
        if "<answer by=" not in prompt:
            return play(body)
        number = next(place for place, name in enumerate(ROUNDS) if f"{name} round" in prompt)
        says: dict[str, list[str]] = {
            "at once": ["Verdict: 20"],
            "convinced": ["They differ.\nVerdict: continue", "**Verdict:** 6 apples"],
            "led astray": ["Verdict: 6"],
            "never": ["hm"] * 3,
            "garbage": ["Verdict: whatever"] * 3,
        }
        return says[row_of(body)][number]

    with FakeEngine.in_thread(answer=judged) as engine:
        found, _ = finish(tmp_path, engine, "agents.roles.judge.use=matrix.agents.teams.debate:Judge")
    ends = {name: (row["termination"], row["scores"]["correct"]["answers"][0]) for name, row in found.items()}
    assert ends == {
        "at once": ("consensus", "20"),
        "convinced": ("consensus", "6"),
        "led astray": ("consensus", "6"),
        "never": ("no_consensus", "1"),
        "garbage": ("no_consensus", None),
    }
    assert found["at once"]["metrics"] == {"rounds": 1, "agreement": 0, "first_round_correct": 1}
    judge = [turn for turn in found["convinced"]["history"] if turn["agent"] == "judge"]
    assert [turn["data"] for turn in judge] == [
        {"opens": 1},
        {"closes": {"round": 1, "answer": "6", "agreement": pytest.approx(2 / 3)}, "opens": 2},
        {"closes": {"round": 2, "answer": "6", "agreement": 1}},
    ]
    assert judge[1]["text"] == "They differ.\nVerdict: continue"
