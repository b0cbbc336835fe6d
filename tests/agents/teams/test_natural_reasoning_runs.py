"""A whole run of natural_reasoning over its sample, against a server that judges documents by a script."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tests.agents.teams.test_team_configs import rows as sample
from tests.command import against, only_run_dir, rows, run, summary
from tests.fake_engine import Body, FakeEngine, Fault

EXTRACTED = {"question": "How much of an iceberg is above water?", "answer": r"\boxed{8} percent"}
WHOLE = r'```json\n{"question": "How much of an iceberg is above water?", "answer": "\boxed{8} percent"}\n```'
# By document: what classifier, scorer and extractor say of it; None: the request fails.
SCRIPT: dict[str, tuple[str | None, ...]] = {
    "garden-chair-sale": ("No",),
    "town-council": ("**No.** It is news.",),
    "forum-login": ("I cannot tell.",),
    "holiday-photos": (None,),
    "cookie-banner": ("",),
    "match-report": ("Yes.", "Score: 2"),
    "product-page": ("yes", "1/10"),
    "celebrity-birthday": ("Yes", "It is a fine document."),
    "why-ice-floats": ("Yes.", "Score: 8", WHOLE),
    "compound-interest": ("Yes", "6", "<question>Why 72?</question><answer>It divides well.</answer>"),
    "base-rate": ("Yes", "Score: 9/10", '{"question": null, "answer": null}'),
    "bridge-expansion": ("Yes", "Score: 7", '{"question": "How long?", "answer": ""}'),
    "consideration": ("Yes", "Score: 10", "Sure! What a nice document."),
    "mitochondrial-eve": ("Yes", None),
    "binary-search": ("Yes", "Score: 8", None),
    "enclosure": ("Yes", "Score: 5.5"),
}
ENDS = {
    "garden-chair-sale": "filter_by_classifier",
    "town-council": "filter_by_classifier",
    "forum-login": "unclear_classifier",
    "holiday-photos": "error",
    "cookie-banner": "unclear_classifier",
    "match-report": "filter_by_score",
    "product-page": "filter_by_score",
    "celebrity-birthday": "unclear_score",
    "why-ice-floats": "extracted",
    "compound-interest": "extracted",
    "base-rate": "no_question",
    "bridge-expansion": "no_answer",
    "consideration": "unparsed",
    "mitochondrial-eve": "error",
    "binary-search": "error",
    "enclosure": "filter_by_score",
}
DOCUMENTS = {row["id"]: row for row in sample("web_sample")}


def said(body: Body) -> str | None:
    prompt = body["messages"][0]["content"]
    name = next(name for name, row in DOCUMENTS.items() if row["text"] in prompt)
    step = 0 if "Yes or No" in prompt else 1 if "Score: N" in prompt else 2
    return SCRIPT[name][step]


def test_every_document_ends_where_it_should(tmp_path: Path) -> None:
    def fails(body: Body) -> Fault | None:
        return Fault.http(400, "too long") if said(body) is None else None

    with FakeEngine.in_thread(answer=lambda body: said(body) or "", fail=fails) as engine:
        done = run(tmp_path, *against(engine.url), "agents=natural_reasoning")
    assert done.returncode == 0, done.stderr
    run_dir = only_run_dir(tmp_path / "outputs")
    found = {row["id"]: row for row in rows(run_dir)}
    others = {name: "filter_by_language" for name, row in DOCUMENTS.items() if row["kind"] == "other_language"}
    assert {name: row["termination"] for name, row in found.items()} == {**ENDS, **others}
    assert {name for name, row in found.items() if row["status"] == "error"} == {
        "holiday-photos", "mitochondrial-eve", "binary-search",
    }, "a failure is no reject"  # fmt: skip
    assert len(engine.requests) == sum(map(len, SCRIPT.values())), "a filtered document is asked about no more"

    last = found["why-ice-floats"]["history"][-1]
    assert [turn["agent"] for turn in found["why-ice-floats"]["history"]] == [
        "language",
        "classifier",
        "scorer",
        "extractor",
    ]
    assert last["data"] == EXTRACTED
    assert found["fietspad"]["history"][0]["text"].startswith("nl (")

    counted = summary(run_dir)
    assert counted["terminations"] == dict(Counter([*ENDS.values(), *others.values()]))
    # Those of rows that end in an error don't count.
    marks = [8, 6, 9, 7, 10, 5.5, 2, 1]
    assert counted["metrics"]["score"]["count"] == len(marks)
    assert counted["metrics"]["score"]["mean"] == sum(marks) / len(marks)


def test_a_data_sets_own_probability_counts_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        '{"text": "das ist und bleibt ein Text", "language_id": {"en": 0.9}}\n'
        '{"text": "this is the text of it", "language_id": {"en": 0.79}}\n'
        '{"text": "this is the text of it"}\n'
        '{"body": "no text at all"}\n'
    )
    options = ("agents=natural_reasoning", "dataset=jsonl", "dataset.path=rows.jsonl")
    with FakeEngine.in_thread(answer=lambda body: "No") as engine:
        done = run(tmp_path, *against(engine.url), *options, "agents.roles.language.options.given=language_id.en")
    assert done.returncode == 0, done.stderr
    found = rows(only_run_dir(tmp_path / "outputs"))
    ends = ["filter_by_classifier", "filter_by_language", "filter_by_classifier", "error"]
    assert [row["termination"] for row in found] == ends
    assert "agents.roles.language.options.text" in found[3]["error"]["message"]
